"""Compares float32 masters with the low weights beside them, element by element of a sample."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from precaudit.checkpoint.facts import Held, Holdings
from precaudit.checkpoint.leaves import Piece
from precaudit.checkpoint.roles import Part
from precaudit.disk import opened

SIXTEEN = ("bfloat16", "float16")
STRETCH, STRETCHES = 128, 16
"""Elements that are compared in one place of a weight, and places."""
ALIKE = 0.5
"""Relative distance above which two tensors of one shape were not made of each other: the pairing is wrong."""
MOST_PADDING = 4096
"""Elements that a flat master may be longer than its weights: DeepSpeed fills up to a multiple of the ranks."""


class Pair(NamedTuple):
    """A weight, and where its master stands."""

    weight: Held
    master: Held
    start: int
    """The element of the master at which the weight begins; 0 unless the master is flat."""


def pairs(holdings: Holdings) -> list[Pair]:
    """Masters with their weights: by name, by equal shapes in the same order, or by the length of one flat master."""
    weights = [
        held for held in holdings.of(Part.WEIGHT) if held.tensor.dtype in SIXTEEN and len(held.tensor.pieces) == 1
    ]
    masters = [
        held for held in holdings.of(Part.MASTER) if held.tensor.dtype == "float32" and len(held.tensor.pieces) == 1
    ]
    if not weights or not masters or len({held.file for held in weights}) > 1:
        return []
    shapes = [held.tensor.shape for held in weights]
    if [held.tensor.shape for held in masters] == shapes:
        return [Pair(weight, master, 0) for weight, master in zip(weights, masters, strict=True)]
    elements = sum(held.tensor.numel for held in weights)
    if len(masters) == 1 and 0 <= masters[0].tensor.numel - elements < MOST_PADDING:
        return list(_flat(weights, masters[0]))
    return [
        Pair(weight, mine[0], 0)
        for weight in weights
        if len(mine := [m for m in masters if m.tensor.shape == weight.tensor.shape and _one_name(m, weight)]) == 1
    ]


def _flat(weights: Sequence[Held], master: Held) -> Iterator[Pair]:
    start = 0
    for weight in weights:
        yield Pair(weight, master, start)
        start += weight.tensor.numel


def _one_name(master: Held, weight: Held) -> bool:
    return master.keys[-1] == weight.keys[-1] or master.dotted.endswith(f".{weight.keys[-1]}")


def apart(pair: Pair) -> float | None:
    """The share of a sample of the weight that is more than one rounding away from its master.

    None where the two are so different that they belong to different parameters, or cannot be read.
    """
    total = pair.weight.tensor.numel
    seen = wrong = 0
    distance = size = 0.0
    for start in _starts(total):
        length = min(STRETCH, total - start)
        masters = _numbers(pair.master.tensor.pieces[0], "float32", pair.start + start, length)
        weights = _numbers(pair.weight.tensor.pieces[0], pair.weight.tensor.dtype, start, length)
        for master, weight in zip(masters, weights, strict=False):
            seen += 1
            wrong += abs(master - weight) > _spacing(master, pair.weight.tensor.dtype)
            distance += (master - weight) ** 2
            size += master * master
    if not seen or not distance <= ALIKE**2 * size:
        return None
    return wrong / seen


def _starts(total: int) -> list[int]:
    if total <= STRETCH * STRETCHES:
        return list(range(0, total, STRETCH))
    return [index * (total - STRETCH) // (STRETCHES - 1) for index in range(STRETCHES)]


def _numbers(piece: Piece, dtype: str, start: int, length: int) -> list[float]:
    size = 4 if dtype == "float32" else 2
    with opened(piece.file, buffering=0) as file:
        file.seek(piece.offset + start * size, os.SEEK_SET)
        raw = file.read(min(length, piece.length // size - start) * size)
    found = len(raw) // size
    if dtype == "bfloat16":
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, 2 * found, 2))
    return list(struct.unpack(f"<{found}{'e' if dtype == 'float16' else 'f'}", raw))


def _spacing(value: float, dtype: str) -> float:
    """From a number to the next in this dtype: rounding to nearest moves by half of it, a random rounding by all."""
    exponent = struct.unpack("<I", struct.pack("<f", value))[0] >> 23 & 0xFF
    lowest, bits = (113, 10) if dtype == "float16" else (1, 7)
    return float(2.0 ** (max(exponent, lowest) - 127 - bits))
