"""Writes a report to its file in one move: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from precaudit.errors import OutputError

HOME = Path(".precaudit")
"""Where every trace leaves its report, below the working directory, unless the user names another folder."""
LATEST = Path("latest") / "report.json"
"""The report of the latest trace, in that folder."""
TASKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
"""How launchers that start one trace per rank number it."""


def check_writable(path: Path) -> None:
    """Raises OutputError now, before hours of training, where a report could not be written to `path` later."""
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name the file the report is to have")
    if _is_device(path):
        return
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"{path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another place")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".precaudit-"):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; choose another place") from None


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` at `path`. Raises OutputError, with the old file untouched, where the disk or the folder refuses."""
    if _is_device(path):
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()  # a link stays a link
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{path.name}-", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        kept = "; the older report there is unchanged" if path.exists() else ""
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
    rank, tasks = _task(environment)
    one = home / LATEST
    path = one if tasks == 1 else one.parent / f"rank-{rank}" / one.name
    try:
        ours = home == HOME or not home.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = home / ".gitignore"
        if ours and not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
        same_run = {one.parent / f"rank-{number}" / one.name for number in range(tasks if tasks > 1 else 0)}
        for other in {one, *latest(home)} - {path} - same_run:
            other.unlink(missing_ok=True)
    except OSError as error:
        way_out = "choose another folder with --output-dir or PRECAUDIT_OUTPUT_DIR"
        raise OutputError(f"{path}: cannot be written: {error.strerror}; {way_out}") from None
    write_atomically(path, text)


def _task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, number of tasks) that a launcher gave this process; (0, 1) where there is none."""
    for rank, tasks in TASKS:
        with contextlib.suppress(KeyError, ValueError):
            return int(environment[rank]), max(int(environment[tasks]), 1)
    return 0, 1


def _is_device(path: Path) -> bool:
    """Whether it is /dev/stdout, a pipe or the like: written to, never replaced by a file."""
    return path.exists() and not path.is_file()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
