"""Reads safetensors: a JSON header that says where each tensor stands. Source: https://huggingface.co/docs/safetensors"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from precaudit.checkpoint.leaves import ITEMSIZE, Leaf, Piece, Tensor, Unreadable, sizes
from precaudit.disk import opened
from precaudit.foreign import ForeignError, parse_json

DTYPES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
    "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
}  # fmt: skip
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the format's own reader sets."""


def fits(start: bytes, size: int) -> bool:
    """Whether a file that begins so is safetensors: 8 bytes of length, then `{`."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= max(size, LONGEST_HEADER)


def read(file: Path) -> Iterator[Leaf]:
    """A leaf per tensor. Raises Unreadable for a header that is broken, or a file that is shorter than it says."""
    size = file.stat().st_size
    with opened(file) as source:
        length = int.from_bytes(source.read(8), "little")
        if length > LONGEST_HEADER:
            raise Unreadable(f"its header claims {length:,} bytes; safetensors allows {LONGEST_HEADER:,}")
        if 8 + length > size:
            raise Unreadable(f"it is cut short: its header alone takes {8 + length:,} bytes, and it has {size:,}")
        try:
            header = parse_json(source.read(length))
        except ForeignError:
            raise Unreadable("its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise Unreadable("its header is not a JSON object")
    start = 8 + length
    for name, entry in header.items():
        if name != "__metadata__":
            yield Leaf((name,), _tensor(name, entry, file, start, size))


def _tensor(name: str, entry: Any, file: Path, start: int, size: int) -> Tensor:
    try:
        shape = sizes(entry["shape"])
        begin, end = sizes(entry["data_offsets"])
        dtype = DTYPES.get(entry["dtype"], str(entry["dtype"]).lower())
    except (KeyError, TypeError, ValueError):
        raise Unreadable(f"its header describes the tensor {name!r} wrongly") from None
    if start + end > size:
        raise Unreadable(f"it is cut short: the tensor {name!r} ends at byte {start + end:,}, and it has {size:,}")
    tensor = Tensor(dtype, shape, end - begin, (file, begin), (Piece(file, start + begin, end - begin),))
    if begin < 0 or end < begin or (dtype in ITEMSIZE and tensor.numel * ITEMSIZE[dtype] > tensor.size + 1):
        raise Unreadable(f"its header gives the tensor {name!r} a place that does not hold its shape")
    return tensor
