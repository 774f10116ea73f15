"""Reads the files that the traced processes wrote; one that cannot be read is a note, never a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from precaudit.disk import LARGEST_REPORT, read, try_writing
from precaudit.model.wire import PeerFile, RankFile


def rank_files(folder: Path) -> list[Path]:
    """The rank files of a folder, in a stable order."""
    return sorted(folder.glob("rank-*.json"))


def read_ranks(folder: Path, notes: list[str]) -> Iterator[RankFile]:
    """Each process's RankFile, one at a time: thousands of ranks never stand in memory together."""
    for path in rank_files(folder):
        try:
            yield RankFile.model_validate_json(read(path, LARGEST_REPORT))
        except OSError as error:
            notes.append(f"{path.name}: cannot be read: {error.strerror}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            notes.append(f"{path.name}: not a rank file of this precaudit: {where}: {first['msg']}")


def read_losses(folder: Path) -> str:
    """What of the ranks' observations could not be written, in a clause with the reason; "" where nothing is missing.

    A rank says so in a file that had its room from the start. Where not even that could be made, the folder tells.
    """
    for path in sorted(folder.glob("lost-*")):
        with contextlib.suppress(OSError, ValueError):
            rank, step, reason = read(path).decode("utf-8", "replace").strip(" \0").split(" ", 2)
            after = f"after optimizer step {int(step)}" if int(step) else "before the first optimizer step"
            return f"what rank {int(rank)} saw {after} could not be written to {folder.parent}: {reason}"
    if rank_files(folder):
        return ""
    try:
        try_writing(folder)
    except OSError as error:
        return f"what was seen could not be written to {folder.parent}: {error.strerror}"
    return ""


def read_peers(folder: Path) -> list[PeerFile]:
    """The last word of each process that joined a process group: a JSON object between two equal numbers."""
    peers = []
    for path in sorted(folder.glob("peer-*")):
        with contextlib.suppress(OSError, ValidationError):
            text = read(path).decode("utf-8", "replace")
            peers.append(PeerFile.model_validate_json(text[text.find("{") : text.rfind("}") + 1]))
    return peers
