"""Tells whether a float32 tensor holds only bfloat16 or only float16 values, from a sample of its bytes.

A float32 is a bfloat16 value exactly when its low 16 bits are zero: bytes 0 and 1 of 4, as files store them. That its
low 13 bits are zero makes it a float16 value where it is within that dtype's range, which a part of the sample shows.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from precaudit.checkpoint.leaves import Tensor
from precaudit.checkpoint.values import chunks
from precaudit.disk import opened

ENOUGH_VALUES = 64
"""Distinct values below which a tensor tells nothing: ones and zeros are bfloat16 values in any dtype."""

LOOKED_UP = 256
"""Elements of one run whose values are told apart: that costs 0.2 µs each, and 64 different ones are enough."""


ENDS_IN_FIVE_ZEROS = bytes(range(0, 256, 32))


class Look(NamedTuple):
    """What a sample of one float32 tensor says."""

    hollow: str
    """Every element seen is a value of this dtype, of at least 64 different ones; empty where it is float32."""
    tells: bool
    """Its values differ enough to say so, or one of them is no such value."""
    seen: int
    """Elements looked at."""


def look(tensor: Tensor) -> Look | None:
    """What the content of a float32 tensor is; None where it cannot be read in place. Memory: one run, 4 kB."""
    seen, values = 0, set[int]()
    if not tensor.pieces:
        return None
    left = {"bfloat16", "float16"}
    for run in chunks(tensor.pieces, 4, whole=False):
        seen += len(run) // 4
        if run[0::4].strip(b"\0"):
            return Look("", True, seen)
        second = run[1::4]
        if second.strip(b"\0"):
            left.discard("bfloat16")
        numbers = memoryview(run).cast("I")
        some = numbers[:: max(1, len(numbers) // LOOKED_UP)].tolist()
        if "float16" in left and (second.translate(None, ENDS_IN_FIVE_ZEROS) or not _are_float16(some)):
            left.discard("float16")
        if not left:
            return Look("", True, seen)
        if len(values) < ENOUGH_VALUES:
            values.update(some)
    enough = len(values) >= ENOUGH_VALUES
    return Look(min(left) if enough else "", enough, seen)


def _are_float16(numbers: list[int]) -> bool:
    """Whether these float32 numbers, given by their bits, all survive a round trip through float16."""
    raw = struct.pack(f"<{len(numbers)}I", *numbers)
    wide = struct.unpack(f"<{len(numbers)}f", raw)
    try:
        return struct.unpack(f"<{len(wide)}e", struct.pack(f"<{len(wide)}e", *wide)) == wide
    except OverflowError:
        return False


def scalar(tensor: Tensor) -> float | None:
    """The value of a tensor of one element, such as an optimizer's step; None for other tensors and dtypes."""
    codes = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i", "float16": "<e", "bfloat16": "<H"}
    code = codes.get(tensor.dtype)
    if code is None or tensor.numel != 1 or not tensor.pieces:
        return None
    piece = tensor.pieces[0]
    with opened(piece.file) as file:
        file.seek(piece.offset)
        raw = file.read(struct.calcsize(code))
    if len(raw) != struct.calcsize(code):
        return None
    if tensor.dtype == "bfloat16":
        code, raw = "<f", b"\0\0" + raw
    return float(struct.unpack(code, raw)[0])
