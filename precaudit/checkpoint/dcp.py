"""Reads a folder of torch.distributed.checkpoint: `.metadata` names the tensors and where each part of one stands.

A part is a torch.save archive of its own inside `__0_0.distcp`. Source: torch/distributed/checkpoint/metadata.py and
filesystem.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from precaudit import disk
from precaudit.checkpoint import pickles
from precaudit.checkpoint.archive import LARGEST_RECORD
from precaudit.checkpoint.leaves import ITEMSIZE, Keys, Leaf, Piece, Tensor, Unreadable, sizes
from precaudit.checkpoint.pickles import Global, Made
from precaudit.checkpoint.torch_zip import inert, read_part

METADATA = ".metadata"
MOST_PARTS = 32
"""Parts of one tensor whose content is looked at."""


class Stored(NamedTuple):
    """Where one part stands: file name, first byte, bytes."""

    file: str
    offset: int
    length: int


class Folder(NamedTuple):
    """What a folder holds, and what of it cannot be read."""

    leaves: list[Leaf]
    foreign: list[str]
    problems: list[str]


def read(folder: Path) -> Folder:
    """Every tensor and value that `.metadata` names. Raises Unreadable where that itself cannot be read."""
    path = folder / METADATA
    pickle = pickles.read(disk.read(path, LARGEST_RECORD))
    state = _state(pickle.value)
    entries, planned = state.get("state_dict_metadata"), state.get("planner_data")
    if not isinstance(entries, dict):
        raise Unreadable("it is not the metadata of torch.distributed.checkpoint")
    places = _places(state.get("storage_data"))
    problems = _missing(folder, [part for parts in places.values() for part in parts])
    leaves = []
    for name, entry in entries.items():
        keys = _keys(str(name), planned)
        parts = [part for part in places.get(str(name), []) if (folder / part.file).is_file()]
        if _class(entry) == "TensorStorageMetadata":
            leaves.append(Leaf(keys, _tensor(entry, str(name), folder, parts)))
        else:
            leaves += _value(keys, folder, parts)
    return Folder(leaves, sorted(str(name) for name in pickle.called if not inert(name)), problems)


def _missing(folder: Path, parts: list[Stored]) -> list[str]:
    """One line per file that is not there, or ends before what `.metadata` says stands in it."""
    ends: dict[str, int] = {}
    for part in parts:
        ends[part.file] = max(ends.get(part.file, 0), part.offset + part.length)
    lines = []
    for name, end in sorted(ends.items()):
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            lines.append(f"{path}: {METADATA} names it, and it is not there")
        elif size < end:
            lines.append(f"{path}: it is cut short: something ends at byte {end:,}, and it has {size:,}")
    return lines


def _keys(name: str, planned: Any) -> Keys:
    """`optim.state.0.weight.exp_avg` as the keys it was flattened from, which the planner noted down."""
    path = planned.get(name) if isinstance(planned, dict) else None
    return tuple(str(key) for key in path) if isinstance(path, (tuple, list)) and path else (name,)


def _places(raw: Any) -> dict[str, list[Stored]]:
    places: dict[str, list[Stored]] = {}
    for index, info in (raw if isinstance(raw, dict) else {}).items():
        named, at = _state(index), _state(info)
        try:
            part = Stored(str(at["relative_path"]), *sizes([at["offset"], at["length"]]))
        except (KeyError, TypeError, ValueError):
            raise Unreadable("it does not say where its tensors stand") from None
        if "/" in part.file or part.file.startswith("."):
            raise Unreadable(f"it names a file outside of its folder: {part.file[:80]}")
        places.setdefault(str(named.get("fqn")), []).append(part)
    return places


def _tensor(entry: Any, name: str, folder: Path, parts: list[Stored]) -> Tensor:
    state = _state(entry)
    properties = state.get("properties")
    values = properties.state if isinstance(properties, Made) else ()
    first = values[0] if isinstance(values, tuple) and values else _state(properties).get("dtype")
    dtype = first.name if isinstance(first, Global) else "float32"
    size = state.get("size")
    shape = sizes(size.args[0]) if isinstance(size, Made) and size.args else ()
    pieces = tuple(_pieces(folder, parts[:: max(1, len(parts) // MOST_PARTS)][:MOST_PARTS]))
    return Tensor(dtype, shape, int(math.prod(shape) * ITEMSIZE.get(dtype, 1)), (folder, name), pieces)


def _pieces(folder: Path, parts: list[Stored]) -> Iterator[Piece]:
    for part in parts:
        for leaf in _leaves(folder, part):
            if isinstance(leaf.value, Tensor):
                yield from leaf.value.pieces


def _value(keys: Keys, folder: Path, parts: list[Stored]) -> list[Leaf]:
    """A value that is no tensor is saved as an archive that holds only it."""
    return [Leaf((*keys, *leaf.keys), leaf.value) for part in parts[:1] for leaf in _leaves(folder, part)]


def _leaves(folder: Path, part: Stored) -> list[Leaf]:
    path = folder / part.file
    try:
        with disk.opened(path) as file:
            return read_part(path, file, part.offset, part.length).leaves
    except Unreadable:
        # Compressed by a transform, or written by another storage writer: its dtype is known, its content is not.
        return []


def _class(value: Any) -> str:
    return value.callee.name if isinstance(value, Made) and isinstance(value.callee, Global) else ""


def _state(value: Any) -> dict[str, Any]:
    return value.state if isinstance(value, Made) and isinstance(value.state, dict) else {}
