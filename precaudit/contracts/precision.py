"""The precision of one run, as it is locked and compared: roles, tensors by name, declarations; nothing of its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from precaudit.model.vocabulary import Fact, Kind, Role, fact_from_json
from precaudit.model.wire import Report

OF_SEVERAL_RANKS = frozenset({Role.GRADIENT_REDUCTION.value})
"""Roles that only a run of several ranks has."""

COMPUTED = frozenset({Role.MATMUL_COMPUTE.value, Role.SOFTMAX.value, Role.LOSS.value})
"""Roles that stand under the name of the module that computes them, beside what its tensors hold."""

Dtypes = tuple[str, ...]
"""Sorted, each once."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What a run held. Two runs of one program have equal ones, whatever their batch, depth or number of ranks."""

    script: str
    """The script or module that trains: "train.py", "-m package.train"."""
    setup: Mapping[str, str] = field(default_factory=dict)
    """device, autocast, optimizer, frameworks."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """They explain a drift and are none."""
    roles: Mapping[str, Dtypes] = field(default_factory=dict)
    declared: Mapping[str, Dtypes] = field(default_factory=dict)
    """Role -> what the program or its framework declared for it."""
    tensors: Mapping[str, Mapping[str, Dtypes]] = field(default_factory=dict)
    """Name or pattern, of tensors or of modules, -> what it is -> its dtypes.

    {"blocks.*.weight": {"AdamW.exp_avg": ("float32",)}, "blocks.*.attn": {"softmax": ("float32",)}}
    """
    several_ranks: bool = False
    preflight: bool = False
    """A CPU stood in for the device."""


def of_report(report: Report) -> Precision:
    """The precision that a trace's report tells of."""
    facts = [fact_from_json(raw) for raw in report.facts]
    cover = report.coverage
    setup = {name: value for name, value in cover.setup.items() if name not in ("torch", "holding") and value}
    return Precision(
        script=script_of(report.run.argv) if report.run is not None else "",
        setup=setup,
        versions=dict(report.run.versions) if report.run is not None else {},
        roles=_by_role(fact for fact in facts if fact.kind is Kind.HOLDS),
        declared=_by_role(fact for fact in facts if fact.kind is Kind.DECLARED),
        tensors={
            row.name: {what: tuple(sorted(dtypes)) for what, dtypes in sorted(row.dtypes.items())}
            for row in report.inventory
        },
        several_ranks=cover.world_size > 1,
        preflight=report.preflight is not None,
    )


def script_of(argv: Iterable[str]) -> str:
    """The script or module of a command, whatever launcher stands in front of it; the program's name where neither is.

    >>> script_of(["/usr/bin/python", "train.py", "--lr", "1"])
    'train.py'
    >>> script_of(["torchrun", "--nproc-per-node", "2", "-m", "package.train"])
    '-m package.train'
    """
    words = list(argv)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.endswith(".py"):
            return word
        if word == "-m" and following and not following.startswith("torch.distributed"):
            return f"-m {following}"
    return PurePath(words[0]).name if words else ""


def _by_role(facts: Iterable[Fact]) -> dict[str, Dtypes]:
    found: dict[str, set[str]] = {}
    for fact in facts:
        # Step counts and learning rates that are tensors: the slots of `tensors` tell of them.
        if fact.role is not None and fact.dtype and fact.attrs.get("what") != "hyperparameter":
            found.setdefault(fact.role.value, set()).add(fact.dtype)
    return {role: tuple(sorted(found[role])) for role in sorted(found)}
