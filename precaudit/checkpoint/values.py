"""Counts NaN, inf and negative numbers in the bytes of tensors, a quarter of a megabyte at a time.

Nothing turns bytes into numbers: whether a number is NaN, or below zero, stands in a few of its bits, and those of all
elements are compared at once, by a search for single bytes and by bits of long integers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from precaudit.checkpoint.leaves import ITEMSIZE, Piece, Tensor
from precaudit.disk import opened
from precaudit.model.vocabulary import FLOATING

CHUNK = 1 << 18
"""Bytes that are looked at together: they and what is made of them stay in a processor's cache."""
SAMPLE = 65_536
"""Elements of a tensor that are looked at where only a sample is asked for."""
PLACES = 64
"""Runs, evenly spread, that a sample is made of."""


class Layout(NamedTuple):
    """Which bits of a number say what; a byte is its lowest eight bits first, as files store them."""

    size: int
    """Bytes."""
    exponent: int
    """All ones in inf and NaN."""
    mantissa: int
    """All zeros in inf; 0 for a dtype that has no inf."""
    sign: int


class Count(NamedTuple):
    """What the bytes of a tensor hold."""

    seen: int
    """Elements looked at."""
    nan: int
    inf: int
    negative: int
    """Below zero; -0 and NaN are not."""
    masks: bool
    """Where inf stands everything else is 0, as in an attention mask."""


@cache
def layout(dtype: str) -> Layout | None:
    """The bits of a floating dtype; None for one that is not read."""
    facts = FLOATING.get(dtype)
    if facts is None:
        return None
    sign = 1 << (facts.bits - 1)
    if dtype == "float8_e4m3fn":
        return Layout(1, 0x7F, 0, sign)
    mantissa = (1 << facts.mantissa_bits) - 1
    return Layout(facts.bits // 8, (sign - 1) ^ mantissa, mantissa, sign)


def count(tensor: Tensor, whole: bool, signs: bool) -> Count | None:
    """What of a tensor is no number, and with `signs` what is below zero; None where it cannot be read in place."""
    bits = layout(tensor.dtype)
    if bits is None or not tensor.pieces:
        return None
    seen = nan = inf = negative = 0
    masks = True
    suspects = [byte for byte in range(256) if byte & _byte(bits.exponent, bits.size - 1) == _top(bits)]
    for raw in chunks(tensor.pieces, bits.size, whole):
        seen += len(raw) // bits.size
        top = raw[bits.size - 1 :: bits.size]
        if any(byte in top for byte in suspects):
            broken = _plane(raw, bits.size, bits.exponent, bits.exponent)
            infinite = _plane(raw, bits.size, bits.mantissa, 0) & broken if bits.mantissa else 0
            nan += (broken ^ infinite).bit_count()
            inf += infinite.bit_count()
            zeros = _plane(raw, bits.size, bits.exponent | bits.mantissa, 0)
            masks = masks and (infinite | zeros).bit_count() * bits.size == len(raw)
        if signs and not top.isascii():
            negative += _below_zero(raw, bits)
    return Count(seen, nan, inf, negative, bool(inf) and masks)


def chunks(pieces: Iterable[Piece], size: int, whole: bool) -> Iterator[bytearray]:
    """The bytes of a tensor in whole elements: all of them, or an evenly spread sample. The buffer is used again."""
    pieces = tuple(pieces)
    for piece in pieces:
        for start, length in runs(piece, size, None if whole else SAMPLE // len(pieces)):
            yield from _stretch(piece, start, length, size)


def runs(piece: Piece, size: int, budget: int | None) -> Iterator[tuple[int, int]]:
    """Where to read: first byte and bytes within the piece, for `budget` elements or, without one, for all."""
    elements = piece.length // size
    if budget is None or elements <= budget:
        yield 0, elements * size
        return
    run = max(1, budget // PLACES)
    for index in range(PLACES):
        yield index * (elements - run) // (PLACES - 1) * size, run * size


def _stretch(piece: Piece, start: int, length: int, size: int) -> Iterator[bytearray]:
    buffer = bytearray(min(CHUNK, length))
    with opened(piece.file, buffering=0) as file:
        file.seek(piece.offset + start, os.SEEK_SET)
        while length:
            view = memoryview(buffer)[: min(len(buffer), length)]
            got = file.readinto(view) // size * size  # type: ignore[attr-defined]
            view.release()
            if not got:
                return
            length -= got
            yield buffer if got == len(buffer) else buffer[:got]


def _below_zero(raw: bytearray, bits: Layout) -> int:
    below = _plane(raw, bits.size, bits.sign, bits.sign)
    if not below:
        return 0
    below &= ~_plane(raw, bits.size, bits.exponent | bits.mantissa, 0)
    broken = _plane(raw, bits.size, bits.exponent, bits.exponent)
    infinite = _plane(raw, bits.size, bits.mantissa, 0) & broken if bits.mantissa else 0
    return (below & ~(broken ^ infinite)).bit_count()


def _plane(raw: bytearray, size: int, mask: int, wanted: int) -> int:
    """A number with one bit set for each element whose bits under `mask` are `wanted`."""
    found = -1
    for at in range(size):
        if _byte(mask, at):
            table = _table(_byte(mask, at), _byte(wanted, at))
            found &= int.from_bytes(raw[at::size].translate(table), "little")
    return found


@cache
def _table(mask: int, wanted: int) -> bytes:
    return bytes(byte & mask == wanted for byte in range(256))


def _byte(number: int, at: int) -> int:
    return number >> 8 * at & 0xFF


def _top(bits: Layout) -> int:
    return _byte(bits.exponent, bits.size - 1)


def one_value(tensor: Tensor) -> bytes:
    """The bytes of the value that all elements of a small tensor have; empty where they differ or cannot be read."""
    size = int(ITEMSIZE.get(tensor.dtype, 0))
    if not size or tensor.size > CHUNK or len(tensor.pieces) != 1:
        return b""
    for raw in chunks(tensor.pieces, size, whole=True):
        value = bytes(raw[:size])
        return value if raw == value * (len(raw) // size) else b""
    return b""
