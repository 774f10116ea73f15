"""The folder of a trace under way, below `.precaudit/runs`: what its ranks saw outlives precaudit and /tmp."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from precaudit import disk
from precaudit.errors import OutputError
from precaudit.foreign import ForeignError, parse_json
from precaudit.launch.bootstrap import TraceSettings
from precaudit.launch.collect import rank_files
from precaudit.launch.save import WAY_OUT, keep_out_of_commits

FOLDER = "runs"
OWNER = "run.json"
"""Whose run it is: the process of precaudit, when that began, and the command."""
KEPT = 5
"""Runs without a report that are kept, the newest."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A run whose precaudit was ended before it could write the report."""

    path: Path
    command: str
    started: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started))
        return (
            f"the trace of {self.command} of {at} was ended before its report; "
            f'"precaudit report {self.path}" shows what was seen'
        )


@contextmanager
def run_folder(home: Path, settings: TraceSettings, command: str) -> Iterator[Path]:
    """Makes the folder of a run that begins, and removes it once its report is written. Raises OutputError."""
    folder = home / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    owner = {"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid()), "command": command}
    try:
        keep_out_of_commits(folder, home)
        disk.write(folder / OWNER, json.dumps({**owner, "started": time.time()}), home)
        disk.write(folder / "settings.json", json.dumps(asdict(settings)), home)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; {WAY_OUT}") from None
    try:
        yield folder
    finally:
        disk.remove_folder(folder)
        with suppress(OSError):
            folder.parent.rmdir()


def abandoned(home: Path) -> list[Abandoned]:
    """The runs that nobody is waiting for and that hold something, newest first; the others are cleared away."""
    found = []
    for folder in sorted((home / FOLDER).glob("*-*")):
        if folder.is_symlink() or not (owner := _owner(folder)) or _alive(owner):
            continue
        started = owner.get("started")
        if rank_files(folder) and isinstance(started, float):
            found.append(Abandoned(folder, str(owner.get("command")), started))
        else:
            disk.remove_folder(folder)
    found.sort(key=lambda one: -one.started)
    for old in found[KEPT:]:
        disk.remove_folder(old.path)
    return found[:KEPT]


def was_ended(folder: Path) -> bool:
    """Whether a folder of rank files is that of a run whose precaudit is no more."""
    owner = _owner(folder)
    return bool(owner) and not _alive(owner)


def _owner(folder: Path) -> dict[str, object]:
    try:
        owner = parse_json(disk.read(folder / OWNER))
    except (OSError, ForeignError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(owner: dict[str, object]) -> bool:
    """Whether the precaudit of a run is still there; on another host nobody can tell, so it counts as there."""
    pid = owner.get("pid")
    if owner.get("host") != platform.node():
        return True
    return isinstance(pid, int) and pid > 0 and _born(pid) is not None and _born(pid) == owner.get("born")


def _born(pid: int) -> str | None:
    """When a process began, in the system's own count; None where it has gone. Without /proc: whether it is there."""
    try:
        fields = disk.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return fields[19].decode() if fields[0] != b"Z" else None
    except (OSError, IndexError):
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return ""
