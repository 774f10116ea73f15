"""Tells whether a float32 tensor holds only bfloat16 values, from a sample of its bytes.

A float32 is a bfloat16 value exactly when its low 16 bits are zero: bytes 0 and 1 of 4, as files store them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from precaudit.checkpoint.leaves import Piece, Tensor
from precaudit.disk import opened

SAMPLE = 65_536
"""Elements that are looked at of one tensor; a smaller one is read whole."""
PLACES = 64
"""Runs, evenly spread, that a sample is made of."""
ENOUGH_VALUES = 64
"""Distinct values below which a tensor tells nothing: ones and zeros are bfloat16 values in any dtype."""

LOOKED_UP = 256
"""Elements of one run whose values are told apart: that costs 0.2 µs each, and 64 different ones are enough."""


class Look(NamedTuple):
    """What a sample of one float32 tensor says."""

    hollow: bool
    """Every element seen is a bfloat16 value, of at least 64 different ones."""
    tells: bool
    """Its values differ enough to say so, or one of them is no bfloat16 value."""
    seen: int
    """Elements looked at."""


def look(tensor: Tensor) -> Look | None:
    """What the content of a float32 tensor is; None where it cannot be read in place. Memory: one run, 4 kB."""
    seen, values = 0, set[int]()
    if not tensor.pieces:
        return None
    budget = SAMPLE // len(tensor.pieces)
    for piece in tensor.pieces:
        for run in _runs(piece, budget):
            run = run[: len(run) // 4 * 4]
            seen += len(run) // 4
            if run[0::4].strip(b"\0") or run[1::4].strip(b"\0"):
                return Look(False, True, seen)
            if len(values) < ENOUGH_VALUES:
                numbers = memoryview(run).cast("I")
                values.update(numbers[:: max(1, len(numbers) // LOOKED_UP)])
    enough = len(values) >= ENOUGH_VALUES
    return Look(enough, enough, seen)


def _runs(piece: Piece, budget: int) -> Iterator[bytes]:
    """The bytes of a piece, or evenly spread runs of them that hold `budget` elements together."""
    elements = piece.length // 4
    if elements <= budget:
        starts, run = [0] if elements else [], elements
    else:
        run = max(1, budget // PLACES)
        starts = [index * (elements - run) // (PLACES - 1) for index in range(PLACES)]
    with opened(piece.file, buffering=0) as file:
        for start in starts:
            file.seek(piece.offset + 4 * start, os.SEEK_SET)
            yield file.read(4 * run)


def scalar(tensor: Tensor) -> float | None:
    """The value of a tensor of one element, such as an optimizer's step; None for other tensors and dtypes."""
    code = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}.get(tensor.dtype)
    if code is None or tensor.numel != 1 or not tensor.pieces:
        return None
    piece = tensor.pieces[0]
    with opened(piece.file) as file:
        file.seek(piece.offset)
        raw = file.read(struct.calcsize(code))
    return float(struct.unpack(code, raw)[0]) if len(raw) == struct.calcsize(code) else None
