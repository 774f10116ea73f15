"""Writes a report to its file in one move: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from precaudit import disk
from precaudit.errors import OutputError

HOME = Path(".precaudit")
"""Where every trace leaves its report, below the working directory, unless the user names another folder."""
REPORT = "report.json"
EVENTS = "events.jsonl"
LATEST = Path("latest") / REPORT
"""The report of the latest trace, in that folder."""
TASKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
"""How launchers that start one trace per rank number it."""


WAY_OUT = "choose another folder with --output-dir or PRECAUDIT_OUTPUT_DIR"


def check_writable(path: Path) -> None:
    """Raises OutputError now, before hours of training, where a report could not be written to `path` later."""
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name the file the report is to have")
    if disk.is_device(path):
        return
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"{path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another place")
    try:
        disk.try_writing(folder)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; choose another place") from None


def check_home(home: Path, environment: Mapping[str, str]) -> str:
    """Why the report of a trace could not be kept in its folder, in one line; "" where it can be. Makes the folder."""
    path = place(home, environment)
    try:
        keep_out_of_commits(path.parent, home)
        if path.is_dir():
            return f"{path}: is a directory; move it away, or {WAY_OUT}"
        disk.try_writing(path.parent)
    except OSError as error:
        return f"{path}: cannot be written: {error.strerror}; {WAY_OUT}"
    return ""


def write_named(path: Path, text: str) -> None:
    """Puts `text` where the user said. Raises OutputError, with the old file untouched, where that is refused."""
    try:
        disk.write_named(path, text)
    except OSError as error:
        kept = "; the older report there is unchanged" if path.is_file() else ""
        raise OutputError(f"{path}: cannot be written: {error.strerror}{kept}") from None


def latest(home: Path = HOME) -> list[Path]:
    """The report of the latest trace, or the reports of each task's trace where a launcher started several."""
    one = home / LATEST
    return sorted(one.parent.glob(f"rank-*/{one.name}")) or [one]


def write_latest(text: str, environment: Mapping[str, str], home: Path = HOME) -> None:
    """Writes `.precaudit/latest/report.json`, with a .gitignore that keeps the folder out of the user's commits.

    Below a launcher that starts one trace per task (`srun precaudit trace train.py`) it is `latest/rank-N/report.json`.
    A folder of the user's, which may hold other things, gets no .gitignore.
    """
    _, tasks = _task(environment)
    one, path = home / LATEST, place(home, environment)
    try:
        keep_out_of_commits(path.parent, home)
        same_run = {one.parent / f"rank-{number}" / one.name for number in range(tasks if tasks > 1 else 0)}
        for other in {one, *latest(home)} - {path} - same_run:
            if not other.is_dir():
                other.unlink(missing_ok=True)
        disk.write(path, text, Path() if home == HOME else home)
    except OSError as error:
        kept = "; the older report there is unchanged" if path.is_file() else ""
        raise OutputError(f"{path}: cannot be written: {error.strerror}{kept}; {WAY_OUT}") from None


def place(home: Path, environment: Mapping[str, str]) -> Path:
    """Where this process keeps its report: below a launcher of several traces, in a folder of its rank."""
    rank, tasks = _task(environment)
    one = home / LATEST
    return one if tasks == 1 else one.parent / f"rank-{rank}" / one.name


def keep_out_of_commits(folder: Path, home: Path) -> None:
    """Makes a folder below the home of reports, with a .gitignore in it where it is our own. Raises OSError."""
    ours = home == HOME or not home.exists()
    below = Path() if home == HOME else home
    disk.make_folder(folder, below)
    ignore = home / ".gitignore"
    if ours and not ignore.exists():
        disk.write(ignore, "*\n", below)


def _task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, number of tasks) that a launcher gave this process; (0, 1) where there is none."""
    for rank, tasks in TASKS:
        with contextlib.suppress(KeyError, ValueError):
            return int(environment[rank]), max(int(environment[tasks]), 1)
    return 0, 1
