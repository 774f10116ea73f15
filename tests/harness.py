"""Runs a training script inside this process, with or without the trace, and leaves torch as it was.

What stands on a fixture's lines is read here too: `# expect: PA101, PA301` where a finding belongs
(`# expect check:` where the source alone shows it) and `# raises: ValueError` where the script is meant to fail.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import random
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import sklearn.datasets  # noqa: F401  (its import draws from `random`: done before any state is compared)
import torch

import precaudit
from precaudit import judge, rulebook
from precaudit.launch.merge import Merged
from precaudit.launch.trace import frameworks_of
from precaudit.model.wire import RankFile, Report, Severity, Tool

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
NEAR = 3
"""A finding counts as located when it lies within so many lines of where it is expected."""

SETTINGS: Mapping[str, Any] = {
    "skip": 1,
    "steps": 2,
    "attempts": 25,
    "keep_going": True,
    "values": "sample",
    "ranks_folder": None,
}


FOREIGN = sys.stdlib_module_names - {"__main__"} | {"torch", "numpy", "sklearn"}
"""Packages whose objects hold addresses, locks or thread ids; only a script's own objects are looked into."""


@dataclass(frozen=True)
class Outcome:
    """What one run of a script came to."""

    stdout: str
    exit_code: int
    error: str
    """The exception that ended the script, as `ValueError: ...`; empty where none did."""
    digest: str
    """sha256 over every tensor that `main` or the module still held at its end, and all random state."""
    tensors: int
    """How many tensors went into the digest."""
    report: Report | None = None


@dataclass
class _Held:
    """Collects tensors from the variables of a finished frame, each once, in a stable order."""

    sha: Any = field(default_factory=hashlib.sha256)
    seen: set[int] = field(default_factory=set)
    tensors: int = 0

    def add(self, name: str, value: Any, depth: int = 0) -> None:
        if id(value) in self.seen or depth > 6:
            return
        if isinstance(value, torch.Tensor):
            self.seen.add(id(value))
            self.tensors += 1
            self.sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if value.device.type == "cpu" and value.layout is torch.strided and not value.is_quantized:
                self.sha.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            if value.grad_fn is None and value.requires_grad:
                self.add(f"{name}.grad", value.grad, depth)
        elif isinstance(value, float | int | bool):
            self.sha.update(f"{name} {value!r}".encode())
        elif isinstance(value, Mapping):
            for key, item in list(value.items()):
                self.add(f"{name}[{key if isinstance(key, str | int) else ''}]", item, depth + 1)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.add(f"{name}[{index}]", item, depth + 1)
        elif isinstance(value, torch.nn.Module):
            self.add(name, dict(value.named_parameters()) | dict(value.named_buffers()), depth)
        elif isinstance(value, torch.optim.Optimizer):
            for group in value.param_groups:
                for index, parameter in enumerate(group["params"]):
                    self.add(f"{name}.state[{index}]", dict(value.state.get(parameter, {})), depth)
                    self.add(f"{name}.params[{index}]", parameter, depth)
        elif isinstance(value, torch.amp.GradScaler):
            self.add(name, value.state_dict(), depth)
        elif isinstance(value, torch.Generator):
            self.sha.update(value.get_state().numpy().tobytes())
        elif hasattr(value, "__dict__") and type(value).__module__.split(".")[0] not in FOREIGN and depth < 3:
            self.seen.add(id(value))
            self.add(name, {k: v for k, v in vars(value).items() if not k.startswith("__")}, depth + 1)


@contextlib.contextmanager
def unchanged_world() -> Iterator[None]:
    """Puts back what a script may change for the whole process: seeds, dtypes, threads, autocast, modules, argv."""
    argv, path, cwd, modules = list(sys.argv), list(sys.path), os.getcwd(), set(sys.modules)
    seeds = torch.random.get_rng_state(), random.getstate()
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    autocast = {d: (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")}
    environ, excepthook = dict(os.environ), sys.excepthook
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv, sys.path[:], sys.excepthook = argv, path, excepthook  # init_process_group sets the last
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environ)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.random.set_rng_state(seeds[0])
        random.setstate(seeds[1])
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        torch.clear_autocast_cache()
        for device, (enabled, low) in autocast.items():
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, low)
        for name in set(sys.modules) - modules:
            where = getattr(sys.modules[name], "__file__", None) or ""
            if where.startswith(str(FIXTURES)):
                del sys.modules[name]


def run(path: Path, argv: Sequence[str] = (), *, traced: bool = False, **settings: Any) -> Outcome:
    """Runs a script as `python path argv...` would, in this process; with `traced`, under precaudit's trace.

    The script's own exceptions and exit codes become part of the outcome. Only what `main` (or the module, where there
    is none) still held at its end goes into the digest.
    """
    path = path.resolve()
    held = _Held()
    exit_code, error = 0, ""
    stdout = io.StringIO()
    report = None

    def at_return(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == "main" and frame.f_code.co_filename == str(path):
            for name, value in sorted(frame.f_locals.items()):
                held.add(name, value)

    with unchanged_world():
        sys.argv = [str(path), *argv]
        sys.path.insert(0, str(path.parent))
        os.chdir(path.parent)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        random.seed(0)
        session = _start({**SETTINGS, "cwd": str(path.parent), **settings}) if traced else None
        rank_file: dict[str, Any] = {}
        try:
            with contextlib.redirect_stdout(stdout), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sys.setprofile(at_return)
                try:
                    left = runpy.run_path(str(path), run_name="__main__")
                finally:
                    sys.setprofile(None)
            for name, value in sorted(left.items()):
                if not name.startswith("__"):
                    held.add(name, value)
        except SystemExit as stop:
            exit_code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as raised:
            exit_code, error = 1, f"{type(raised).__name__}: {raised}"
        finally:
            held.sha.update(torch.random.get_rng_state().numpy().tobytes())
            held.sha.update(repr(random.getstate()).encode())
            if session is not None:
                rank_file = session.rank_file.content()
                session.remove()
    if traced:
        report = judged(rank_file, exit_code)
    return Outcome(stdout.getvalue(), exit_code, error, held.sha.hexdigest(), held.tensors, report)


def trace_call(
    train: Callable[[], object], *, sink: Callable[[Report], object] | None = None, **settings: Any
) -> Report:
    """The report of a trace around one call; the caller keeps the objects and can look at them itself.

    Where the call raises, `sink` still receives the report, and the exception passes.
    """
    with unchanged_world():
        torch.set_num_threads(1)
        session = _start({**SETTINGS, "cwd": os.getcwd(), **settings})
        try:
            train()
        finally:
            report = judged(session.rank_file.content())
            session.remove()
            if sink is not None:
                sink(report)
    return report


def keep_modules(session: Any) -> None:
    """Lets names be asked once the window is over, when a trace has let go of the program's modules."""
    session.parts.let_go = lambda: None


def _start(settings: dict[str, Any]) -> Any:
    from precaudit.runtime import session

    return session.start(settings)


def judged(raw: Mapping[str, Any], exit_code: int = 0) -> Report:
    """The report that the parent process would make of one rank's file."""
    return judged_ranks([raw], exit_code)


def judged_ranks(raws: Sequence[Mapping[str, Any]], exit_code: int = 0) -> Report:
    """The report that the parent process would make of these rank files."""
    merged = Merged()
    for raw in raws:
        merged.add(RankFile.model_validate(raw))
    merged.finish()
    facts, book = merged.facts, rulebook.load()
    findings = judge.judge(facts, book, "trace", frameworks_of(merged.coverage.setup))
    return Report(
        tool=Tool(version=precaudit.__version__),
        command="trace",
        status="findings" if findings else "clean" if facts else "inconclusive",
        findings=findings,
        roles=judge.role_table(facts, findings, book),
        coverage=merged.coverage,
        facts=[fact.as_json() for fact in facts],
        exact=merged.exact,
        inventory=merged.inventory,
        picture=merged.picture,
        by_rank=merged.by_rank,
        preflight=merged.preflight,
        exit_code=exit_code,
    )


@functools.cache
def traced(path: Path, argv: tuple[str, ...] = ()) -> Outcome:
    """One traced run of a fixture, shared by all tests that ask about it."""
    return run(path, argv, traced=True)


def trace(path: Path, argv: Sequence[str] = ()) -> Report:
    """The report of one traced run of a script."""
    report = run(path, argv, traced=True).report
    assert report is not None
    return report


EXPECT = re.compile(r"#\s*expect(?: (check|trace|checkpoint))?:\s*(PA\d{3}(?:\s*,\s*PA\d{3})*)")
RAISES = re.compile(r"#\s*raises:\s*(\w+)")


def expected(path: Path, witness: str = "trace") -> dict[str, set[int]]:
    """Rule id -> the lines of this script where this witness is expected to find it broken."""
    wanted: dict[str, set[int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for match in EXPECT.finditer(line):
            if match[1] in (None, witness):
                for rule in re.split(r"\s*,\s*", match[2]):
                    wanted.setdefault(rule, set()).add(number)
    return wanted


def raises(path: Path) -> str:
    """The exception a script is meant to end with, or ""."""
    match = RAISES.search(path.read_text(encoding="utf-8"))
    return match[1] if match else ""


def loud(report: Report) -> dict[str, set[tuple[str, int]]]:
    """Rule id -> the places where the report speaks as an error or a warning."""
    spoken: dict[str, set[tuple[str, int]]] = {}
    for finding in report.findings:
        if finding.severity is not Severity.NOTE and not finding.suppressed:
            spoken.setdefault(finding.rule, set()).add((finding.path or "", finding.line or 0))
    return spoken
