"""Examines the checkpoints at some paths one file at a time, and collects Facts and coverage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from precaudit.checkpoint import formats
from precaudit.checkpoint.facts import Holdings, facts_of
from precaudit.checkpoint.folders import Checkpoint, discover
from precaudit.checkpoint.leaves import Unreadable
from precaudit.checkpoint.roles import Part
from precaudit.checkpoint.value_facts import value_facts
from precaudit.errors import UsageError
from precaudit.model.vocabulary import Fact

SHOWN = 3
"""Names of foreign code that a note gives."""


@dataclass(slots=True)
class Examined:
    """What all checkpoints together came to."""

    facts: list[Fact] = field(default_factory=list)
    files: int = 0
    checkpoints: int = 0
    tensors: int = 0
    bytes: int = 0
    frameworks: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """One line for each file that could not be read, with the way out."""
    notes: list[str] = field(default_factory=list)
    held: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    """What each tensor is, by its name in the file: ("blocks.0.weight", {"weight": ["bfloat16"]})."""


def examine(names: Sequence[str], whole: bool = True) -> Examined:
    """The Facts at these paths, files or folders: of all values, or of a sample. Raises UsageError for none there."""
    result = Examined()
    for name in names:
        path = Path(name)
        if not path.exists():
            raise UsageError(f"{name}: no such file or folder")
        try:
            for checkpoint in discover(path):
                _one(checkpoint, result, whole)
        except OSError as error:
            result.skipped.append(f"{error.filename or name}: cannot be read: {error.strerror}")
    return result


def _one(checkpoint: Checkpoint, result: Examined, whole: bool) -> None:
    holdings = Holdings(checkpoint)
    result.skipped += checkpoint.problems
    counted: set[object] = set()
    foreign: dict[str, list[Path]] = {}
    read = 0
    for file in checkpoint.files:
        try:
            contents = formats.read(file)
        except Unreadable as error:
            result.skipped.append(f"{file}: {error}")
            continue
        except OSError as error:
            result.skipped.append(f"{file}: cannot be read: {error.strerror}")
            continue
        result.skipped += contents.problems
        for name in contents.foreign:
            foreign.setdefault(name, []).append(file)
        holdings.add(file, contents)
        read += 1
    if foreign:
        files = {os.fspath(file) for where in foreign.values() for file in where}
        where = files.pop() if len(files) == 1 else os.fspath(checkpoint.path)
        names, more = sorted(foreign), len(foreign) - SHOWN
        listed = ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        result.notes.append(f"{where}: unpickling it would also call {listed}; nothing of it was called here")
    result.files += read
    if not read:
        return
    result.checkpoints += 1
    for held in holdings.tensors:
        result.tensors += 1
        key = held.tensor.storage or id(held)
        result.bytes += 0 if key in counted else held.tensor.size
        counted.add(key)
        if held.part is Part.MOMENT:
            result.held.append((held.parameter, {f"state.{held.name}": [held.tensor.dtype]}))
        elif held.part in (Part.WEIGHT, Part.MASTER, Part.ADAPTER):
            result.held.append((held.dotted, {"weight": [held.tensor.dtype]}))
    facts, notes = facts_of(holdings, os.fspath(checkpoint.path))
    result.facts += facts
    result.notes += notes
    facts, notes = value_facts(holdings, os.fspath(checkpoint.path), whole)
    result.facts += facts
    result.notes += notes
    unknown = [held for held in holdings.of(Part.OTHER) if held.tensor.dtype.startswith(("float", "bfloat"))]
    if large := [held for held in unknown if held.tensor.numel > 1]:
        count = f"{len(large):,} floating tensor{'s' * (len(large) != 1)}"
        example = ".".join(large[0].keys)
        result.notes.append(f"{checkpoint.path}: what {count} are for could not be told, such as {example}")
    if checkpoint.framework and checkpoint.framework not in result.frameworks:
        result.frameworks.append(checkpoint.framework)
