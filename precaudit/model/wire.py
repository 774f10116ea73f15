"""The shapes that enter or leave the process: rules, findings, reports and rank files, checked by pydantic."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from precaudit.model.exact import ExactStep
from precaudit.model.picture import Picture, RanksHeld
from precaudit.model.vocabulary import Kind, Role, Scalar

FORMAT_VERSION: Literal[1] = 1
"""1: the first published report format."""


class Severity(str, Enum):
    """How much a finding weighs; notes are shown only when asked for."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        return {"error": 2, "warning": 1, "note": 0}[self.value]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Match = dict[str, Scalar | list[Scalar]]
"""Attribute name -> the value, or the values, it must have."""


class Grade(Strict):
    """A severity for some of the Facts a rule matches. The first grade that fits wins over the rule's own severity."""

    severity: Severity | Literal["silent"]
    dtype: list[str] = []
    when: Match = {}
    evidence: dict[str, float] = {}
    """Fits when every named number was measured and is at least this."""
    measured: list[str] = []
    """Fits when every named number was measured at all; with `below`, when it is under that."""
    below: dict[str, float] = {}
    message: str = ""
    """Stands in for the rule's own message where this grade fits."""
    fix: str = ""
    """Stands in for every fix of the rule where this grade fits."""


class Case(Strict):
    """Words for some of the Facts a rule matches, whatever they weigh. The first case that fits stands in."""

    dtype: list[str] = []
    when: Match = {}
    message: str = ""
    """In place of the rule's message, where no grade has its own."""
    says_all: bool = False
    """The message needs no detail of the Fact behind it."""
    why: str = ""
    """In place of the rule's why; with the figures of this case."""
    fix: str = ""
    """In place of every fix of the rule, where no grade has its own."""
    part_of: str = ""
    """The rule whose finding in the same file and dtype is the same mistake: beside it this is at most a warning."""


class Rule(Strict):
    """One TOML file of `rules/`: which Facts are a violation, how much it weighs, and what to tell the user."""

    id: Annotated[str, Field(pattern=r"^PA\d{3}$")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: str
    severity: Severity
    since: str
    seen_by: list[Literal["check", "trace", "checkpoint"]]
    fact: Kind = Kind.HOLDS
    role: Role | list[Role] | None = None
    allow: list[str] | None = None
    """Any other floating dtype is a violation. "low" and "high" name the groups."""
    forbid: list[str] | None = None
    when: Match = {}
    unless: Match = {}
    grades: list[Grade] = []
    cases: list[Case] = []
    message: str
    """One clause; `{dtype}`, `{role}`, `{count}` and every attribute can stand in it."""
    why: str
    wrong: str
    right: str
    ignore_when: str
    fix: str
    fixes: dict[str, str] = {}
    """The fix in a framework's own words, by adapter name: fsdp2, deepspeed, trainer, lightning, …"""
    references: list[str] = []


class RoleRow(Strict):
    """One row of the document's table, `rules/profiles/document.toml`."""

    role: Role
    label: str
    section: str
    wanted: list[str]
    """Dtypes the document wants, or ["any"]."""
    seen_with: str = ""
    """What has to run for a trace to see this role, for the reader of a report that did not: "a GradScaler"."""


class Line(Strict):
    """A second place worth looking at, with what it did."""

    text: str
    path: str = ""
    line: int = 0
    column: int = 0
    cell: int | None = None


class PartOf(Strict):
    """Some of the tensors a finding speaks of, and what was measured of them alone."""

    name: str
    """A parameter's name, or the pattern of several."""
    tensors: int
    evidence: dict[str, float]


class Finding(BaseModel):
    """One violation, as scripts may rely on it."""

    model_config = ConfigDict(extra="forbid")

    rule: str
    name: str
    severity: Severity
    role: str | None
    message: str
    path: str | None
    line: int | None
    column: int | None
    end_line: int | None = None
    end_column: int | None = None
    cell: int | None = None
    """The notebook's cell, counted from 1 over all its cells; lines count from the cell's first."""
    library: str = ""
    """The library's own line below the user's, where it happened there."""
    module: str = ""
    dtype: str = ""
    allowed: list[str] = []
    count: int = 1
    seen_by: list[str] = []
    evidence: dict[str, float] = {}
    parts: list[PartOf] = []
    """The tensors it is worst for, worst first; at most 20 rows."""
    cause: Line | None = None
    fix: str = ""
    why: str = ""
    """The rule's reasons for this case; empty where the rule's own stand."""
    cost_bytes: int = 0
    """Bytes per rank the fix would add, where that follows from the tensors seen."""
    fingerprint: str = ""
    suppressed: bool = False
    """The user has accepted it: it is told, and counts for nothing."""
    because: str = ""
    """Why the contract in pyproject.toml allows it; such a finding is suppressed."""
    standing: Literal["", "confirmed", "refuted", "not-exercised"] = ""
    """Of an audit: what the run says of what the source shows; empty for what the run alone shows."""
    standing_because: str = ""
    fixable: bool = False
    """`precaudit check --fix` mends it."""
    ranks: list[int] = []


class RoleSummary(Strict):
    """How many tensors of a role held one dtype, and what the table says of that."""

    role: str
    dtype: str | None
    tensors: int
    bytes: int
    verdict: Literal["violation", "allowed", "ok", "not-observed"]
    because: list[str] = []
    """Why less than the table wants is allowed here: "kahan", "stochastic-rounding", "block-wise", …"""


class Held(Strict):
    """What the tensors of one name held in the traced steps, or what the module of that name computed."""

    name: str
    """A parameter's, buffer's or module's name, or a pattern (`blocks.*.norm.weight`); an exact name goes first."""
    tensors: int
    """How many tensors, or modules, of this name there are."""
    dtypes: dict[str, list[str]]
    """What it is -> its dtypes: "weight", "gradient", "buffer", "AdamW.exp_avg"; of a module "softmax" and its kin."""
    bytes: dict[str, int] = {}
    """What it is -> the bytes of all of them, on one rank."""


class Coverage(BaseModel):
    """What was looked at, and what was not."""

    model_config = ConfigDict(extra="forbid")

    files: int = 0
    skipped: list[str] = []
    hidden: dict[str, int] = {}
    """Findings that are left out: those the baseline accepts, and with --since those on unchanged lines."""
    steps: int = 0
    ranks: int = 0
    unattributed_ops: float = 0.0
    compiled: dict[str, float] = {}
    """What ran compiled in the traced steps: regions, operations (of forward), share (of all forward operations)."""
    notes: list[str] = []
    micro_batches: int = 0
    attempts: int = 0
    skipped_steps: int = 0
    traced_steps: list[int] = []
    parameters: int = 0
    rank_ids: list[int] = []
    """The ranks that were seen; empty outside of a trace."""
    world_size: int = 0
    """How many ranks the run had, here and on other nodes."""
    stopped: int = 0
    """How many of the ranks precaudit stopped after their traced steps."""
    not_observed: dict[str, str] = {}
    """Role -> why, and what would have to run to see it."""
    overhead: dict[str, float] = {}
    setup: dict[str, str] = {}
    """torch, device, autocast, optimizer, frameworks: the line a report opens with."""


class Assumed(Strict):
    """An answer that a preflight made up, and how often somebody asked for it."""

    what: str
    path: str
    line: int
    """0 where no line of the program was running."""
    count: int


class Preflight(Strict):
    """What of a run without a GPU is real, and what is assumed."""

    device: str
    """As `--device` names it."""
    device_name: str
    memory: int
    """Bytes of the device."""
    values: Literal["cpu", "none"]
    """Where numbers came from: a CPU computed them; none: there were sizes and dtypes only."""
    ranks: int = 1
    """How many ranks there would be, of which one ran, alone."""
    real: list[str]
    assumed: list[Assumed]


class Tool(Strict):
    name: str = "precaudit"
    version: str


class Run(Strict):
    """Which run a report is of."""

    id: str
    """Different for every run."""
    argv: list[str]
    """The command that was started."""
    cwd: str
    """The working directory, from which the report's paths count."""
    started: str
    """ISO 8601, UTC."""
    duration_s: float
    host: str
    python: str
    versions: dict[str, str] = {}
    """torch and the frameworks that the traced process had loaded."""
    gpu: str = ""
    """The device's name, as torch.cuda gives it; empty where the process used none."""
    model: str = ""
    """The class that was trained, several in the order in which their optimizers stepped."""
    parameters: int = 0
    """Elements of its parameters, frozen ones too; of a sharded model those that one rank can name."""
    commit: str = ""
    """The git commit of the working directory; empty outside of a repository."""
    dirty: bool | None = None
    """Whether tracked files differed from it; null where git did not say."""


class Report(BaseModel):
    """The JSON report, format_version 1."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    tool: Tool
    command: Literal["check", "trace", "audit", "checkpoint", "snapshot"]
    status: Literal["clean", "findings", "inconclusive", "script-failed"]
    findings: list[Finding] = []
    roles: list[RoleSummary] = []
    coverage: Coverage = Coverage()
    facts: list[dict[str, Any]] = []
    exact: ExactStep | None = None
    """What `--exact` measured: one step against float64."""
    inventory: list[Held] = []
    """What every parameter, gradient, buffer and optimizer slot held, by name."""
    picture: Picture | None = None
    """What a page draws: how large values are, and one step in time; of the lowest rank."""
    by_rank: list[RanksHeld] = []
    """Where there are several: which ranks held which dtypes."""
    drift: list[str] = []
    """What the run did otherwise than its precision.lock says, where it was held to one."""
    run: Run | None = None
    preflight: Preflight | None = None
    """What was real and what assumed, where a device was stood in for."""
    exit_code: int | None = None
    """The traced command's own exit code, where one was run."""


class RankFile(BaseModel):
    """What one traced process wrote: its Facts and what it did and did not see."""

    model_config = ConfigDict(extra="ignore")

    format: Literal[1]
    rank: int = 0
    world_size: int = 1
    pid: int = 0
    status: Literal["watching", "finished", "stopped"]
    """watching: the window was still open; finished: it closed and the run went on; stopped: precaudit ended it."""
    steps: int = 0
    """Optimizer steps taken inside the window."""
    without: list[int] = []
    """Ranks this one did not wait for when it stopped: what those met afterwards is precaudit's doing."""
    coverage: Coverage = Coverage()
    facts: list[dict[str, Any]] = []
    exact: ExactStep | None = None
    inventory: list[Held] = []
    picture: Picture | None = None
    preflight: Preflight | None = None
    python: str = ""
    versions: dict[str, str] = {}
    """torch and the frameworks that were loaded."""
    gpu: str = ""
    model: str = ""
    parameters: int = 0


class PeerFile(BaseModel):
    """What a process that joined a process group last told its peers; see runtime/process/peers.py."""

    model_config = ConfigDict(extra="ignore")

    pid: int
    state: Literal["joining", "running", "parked", "stopping", "stopped", "gone"]
    """gone: it ended by itself; anything before that, of a process that is no more: it was ended without a word."""
    rank: int = -1
    world_size: int = 0
    done: bool = False
    """Its window was over."""
    error: str = ""
    """The exception that ended it."""
