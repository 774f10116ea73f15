"""The folders of runs, `.precaudit/runs/<time>-<id>`: what ranks see goes there, and the report stays; old ones go."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precaudit import disk
from precaudit.errors import OutputError
from precaudit.foreign import ForeignError, parse_json
from precaudit.launch.bootstrap import TraceSettings
from precaudit.launch.collect import rank_files
from precaudit.launch.identity import Started
from precaudit.launch.save import EVENTS, REPORT, WAY_OUT, keep_out_of_commits, place, write_latest

FOLDER = "runs"
OWNER = "run.json"
"""Whose run it is while it is under way: the process of precaudit, when that began, and the command."""
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


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run under way: rank files in it, and the report once there is one."""

    path: Path
    home: Path
    keep: int
    """Finished runs that stay, this one among them; 0 keeps the latest report alone."""

    def write(self, text: str) -> None:
        """Puts the report, as JSON, into this folder and to where the latest one is looked for. Raises OutputError."""
        write_latest(text, os.environ, self.home)
        if self.keep:
            try:
                disk.write(self.path / REPORT, text, self.home)
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written: {error.strerror}; {WAY_OUT}") from None

    def tell(self, line: str) -> None:
        """Adds a line to the events of this run, here and to those of the latest one. Raises OSError."""
        latest = place(self.home, os.environ).with_name(EVENTS)
        for path in (latest, *([self.path / EVENTS] if self.keep else [])):
            disk.append(path, line)

    def begin_events(self, told: bool) -> None:
        """Takes away the events of the run before; makes room for those of this one where it tells any."""
        latest = place(self.home, os.environ).with_name(EVENTS)
        with suppress(OSError):
            if told:
                disk.write(latest, "", self.home)
                disk.write(self.path / EVENTS, "", self.home)
            else:
                latest.unlink(missing_ok=True)


@contextmanager
def run_folder(
    home: Path, settings: TraceSettings, command: str, started: Started, keep: int = 20
) -> Iterator[RunFolder]:
    """Makes the folder of a run that begins; afterwards its report alone stays in it. Raises OutputError."""
    folder = home / FOLDER / f"{started.at.astimezone():%Y%m%d-%H%M%S}-{started.id[:8]}"
    owner = {"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid()), "command": command}
    try:
        keep_out_of_commits(folder, home)
        disk.write(folder / OWNER, json.dumps({**owner, "started": time.time()}), home)
        disk.write(folder / "settings.json", json.dumps(asdict(settings)), home)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; {WAY_OUT}") from None
    try:
        yield RunFolder(folder, home, keep)
    finally:
        _clear(folder)
        for old in finished(home)[keep:]:
            disk.remove_folder(old)
        with suppress(OSError):
            folder.parent.rmdir()


def _clear(folder: Path) -> None:
    """Leaves the report and the events of a run that is over; a run without a report leaves nothing."""
    if not (folder / REPORT).is_file():
        disk.remove_folder(folder)
        return
    for path in folder.iterdir():
        if path.name not in (REPORT, EVENTS):
            with suppress(OSError):
                path.unlink()


def finished(home: Path) -> list[Path]:
    """The folders of runs that are over and have a report, newest first."""
    folders = [f for f in (home / FOLDER).glob("*-*") if not f.is_symlink() and not (f / OWNER).exists()]
    return sorted((f for f in folders if (f / REPORT).is_file()), key=lambda f: f.name, reverse=True)


def find(home: Path, word: str) -> Path | None:
    """The one finished run whose folder's name, or whose id, begins with a word: "20261130-2147" or "3fa2"."""
    fits = [f for f in finished(home) if f.name.startswith(word) or f.name.rpartition("-")[2].startswith(word)]
    return fits[0] if word and len(fits) == 1 else None


def summary(folder: Path) -> dict[str, Any]:
    """What a list of runs says of one: its identity, its status, its findings by severity."""
    try:
        raw = parse_json(disk.read(folder / REPORT, disk.LARGEST_REPORT))
        run, counts = dict(raw.get("run") or {}), {"error": 0, "warning": 0, "note": 0}
        for finding in raw["findings"]:
            counts[finding["severity"]] += not finding.get("suppressed")
        told = {key: run.get(key) for key in ("id", "started", "duration_s", "argv", "commit", "dirty", "model")}
        return {"folder": str(folder), "command": raw["command"], "status": raw["status"], **counts, **told}
    except (OSError, ForeignError, AttributeError, KeyError, TypeError, ValueError):
        return {"folder": str(folder), "status": "not a report of this precaudit"}


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
