"""What a reader makes of a file: tensors with their place on disk, and plain values, each under its keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Keys = tuple[str, ...]
"""The keys that lead to a value from the top of its file: `("optimizer", "state", "0", "exp_avg")`."""
DEEPEST = 100
"""Levels of containers that are followed; torch's own checkpoints have about ten."""
MOST_VALUES = 2_000_000
"""Values that are followed in one file; a list that contains itself would go on for ever."""


class Unreadable(Exception):
    """A file that cannot be read as a checkpoint; its text says why, without the file's name."""


class Piece(NamedTuple):
    """A run of little-endian bytes in a file that holds a tensor or a part of it."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a file describes it; none of its bytes are read yet."""

    dtype: str
    """PyTorch's name of it: bfloat16, int8, float8_e4m3fn."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    storage: object = None
    """Equal for tensors that share their bytes; None where it shares them with no other."""
    pieces: tuple[Piece, ...] = ()
    """Where its bytes stand; empty where that is not known or they cannot be read in place."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


MOST_DIMENSIONS = 64
"""As many as torch allows."""
LARGEST_SIZE = 1 << 63


def sizes(values: Any) -> tuple[int, ...]:
    """A shape, an offset or a stride as a file gives it. Raises ValueError for what no tensor has."""
    found = tuple(values)
    if len(found) > MOST_DIMENSIONS or not all(isinstance(n, int) and abs(n) < LARGEST_SIZE for n in found):
        raise ValueError("no sizes of a tensor")
    return found


class Leaf(NamedTuple):
    """One value of a file: a Tensor, or a string, bool, int or float."""

    keys: Keys
    value: Tensor | str | bool | int | float


def walk(value: Any, keys: Keys = ()) -> Iterator[Leaf]:
    """Every leaf of nested mappings, lists and tuples; an empty mapping is the leaf `{}` under its keys.

    Raises Unreadable for values that contain themselves, or are nested so as never to end.
    """
    waiting = [(value, keys)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        item, at = waiting.pop()
        if isinstance(item, (Tensor, str, bool, int, float)):
            yield Leaf(at, item)
        elif len(at) > DEEPEST:
            raise Unreadable(f"its containers are nested more than {DEEPEST} deep")
        elif isinstance(item, Mapping):
            if not item and at:
                yield Leaf(at, "{}")
            waiting += [(inner, (*at, str(key))) for key, inner in reversed(list(item.items()))]
        elif isinstance(item, (list, tuple)):
            waiting += [(inner, (*at, str(number))) for number, inner in reversed(list(enumerate(item)))]
    raise Unreadable(f"it holds more than {MOST_VALUES:,} values beside its tensors")


ITEMSIZE: Mapping[str, float] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float6_e2m3fn": 0.75, "float6_e3m2fn": 0.75, "float4_e2m1fn_x2": 1, "quint8": 1, "qint8": 1, "qint32": 4,
}  # fmt: skip
"""Bytes per element. Sources: torch.dtype.itemsize; https://huggingface.co/docs/safetensors/metadata_parsing"""
