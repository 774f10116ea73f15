"""Holds a traced run to its lock: reads it before the run, compares after it, renews it where that is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precaudit.contracts import lockfile
from precaudit.contracts.drift import Comparison, compare
from precaudit.contracts.precision import Precision, of_report, script_of
from precaudit.disk import read_text
from precaudit.errors import LockError
from precaudit.launch.save import write_named
from precaudit.model.wire import Report


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that a run is going to be held to; `held` is None where there is none yet and the run makes it."""

    path: Path
    held: Precision | None


def before(path: Path, argv: Sequence[str], update: bool) -> Lock:
    """Reads the lock. Raises LockError now, before hours of training, where it is no lock, or one of another script."""
    if update and not path.exists():
        return Lock(path, None)
    held = lockfile.read(path)
    script = script_of(argv)
    if held.script != script:
        raise LockError(
            f"{path}: is the lock of {held.script or 'nothing'}, and this runs {script}; "
            f'name the lock of {script} with --lock, or make one: "precaudit lock --lock FILE {script}"'
        )
    return Lock(path, held)


def after(lock: Lock, report: Report) -> Comparison:
    """What the run did otherwise than its lock says."""
    now = of_report(report)
    return compare(lock.held, now) if lock.held is not None else Comparison((), (), ())


def seen_enough(report: Report) -> bool:
    """Whether a run can be held to a lock or make one: one that was not watched to its end can do neither."""
    return report.status in ("clean", "findings") and bool(report.facts)


def renew(path: Path, report: Report) -> str:
    """Writes the lock of this run. Returns what changed in it, as a unified diff, empty where nothing did."""
    text = lockfile.write(of_report(report))
    try:
        old = read_text(path)
    except OSError:
        old = ""
    if old != text:
        write_named(path, text)
    lines = difflib.unified_diff(old.splitlines(), text.splitlines(), str(path), str(path), lineterm="", n=2)
    return "\n".join(lines)
