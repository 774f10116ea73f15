"""Storages without numbers, for `--fake`: of full size, on address space that is reserved and never touched.

To torch they belong to ordinary CPU tensors of class Tensor: autograd, hooks, DistributedDataParallel and FSDP take
them as they are. An attribute of the storage tells them, and keeps the one value that all elements have, where one is
known: a flag, a count, a scale.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

import torch
from torch import Tensor

from .assumed import refuse
from .placement import mark

ROOM = 1 << 46
"""Bytes of address space; where they end they begin anew, as nobody looks what is there."""
RESERVE_ONLY = 0x4000
"""MAP_NORESERVE of Linux, which the mmap module of Python 3.11 does not name."""
VALUE = "_precaudit_value"
"""The attribute of a storage without numbers: the one value of all its elements, or None."""
SIZE = "_precaudit_size"
"""The attribute of a storage without numbers that was resized: its size in bytes."""
REAL = object()
"""The value of a storage whose numbers are there."""
nbytes = torch.UntypedStorage.nbytes


def value_of(tensor: Tensor) -> Any:
    """REAL, the one value that all elements have, or None where nothing is known of them."""
    tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor has no storage of its own
    try:
        return getattr(tensor.untyped_storage(), VALUE, REAL)
    except (RuntimeError, NotImplementedError):  # sparse and other layouts
        return REAL


def has_numbers(tensor: Tensor) -> bool:
    """Whether the elements of a tensor are what the program computed."""
    return value_of(tensor) is REAL


def forget(tensor: Tensor, value: Any) -> None:
    """A tensor that something without numbers was written to has none; `value` is what all of its elements are now."""
    storage = tensor.untyped_storage()
    whole = tensor.numel() * tensor.element_size() == nbytes(storage)
    setattr(storage, VALUE, value if whole else None)


def usual(tensor: Tensor) -> Any:
    """What is read where nothing is known: a loss is 1.0, a count 1, a flag False."""
    if tensor.dtype is torch.bool:
        return False
    return 1.0 if tensor.is_floating_point() else 1


@functools.cache
def reserved() -> int:
    """The first address of what is reserved, once for the process: tensors outlive a preflight."""
    try:
        kept = mmap.mmap(-1, ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | RESERVE_ONLY)
    except (OSError, ValueError) as error:
        raise refuse(
            f"--fake: {ROOM >> 40} TiB of address space cannot be reserved ({error})",
            "lift the limit (ulimit -v unlimited), or run without --fake",
        ) from None
    return ctypes.addressof(ctypes.c_char.from_buffer(kept))  # which holds it, exported, for as long as Python runs


class Room:
    """Address space that stands for memory."""

    def __init__(self) -> None:
        self._base = reserved()
        self._next = 0

    def storage(self, size: int, value: Any = None) -> Any:
        """A storage of so many bytes, none of which is there."""
        if size > ROOM:
            raise refuse(f"--fake: a tensor of {size:,} bytes", "no machine holds that; make it smaller")
        if self._next + size > ROOM:
            self._next = 0
        made = torch._C._construct_storage_from_data_pointer(self._base + self._next, torch.device("cpu"), size)
        self._next += -(-size // 64) * 64
        setattr(made, VALUE, value)
        return made

    def like(self, shape: Tensor, index: int | None, value: Any = None) -> Tensor:
        """A tensor without numbers, of the size, strides and dtype of a meta tensor, on a device or (None) the CPU."""
        extent = 1 + sum((n - 1) * step for n, step in zip(shape.size(), shape.stride(), strict=True))
        size = 0 if shape.numel() == 0 else extent * shape.element_size()
        made = torch.empty(0, dtype=shape.dtype, device="cpu")
        return mark(made.set_(self.storage(size, value), 0, shape.size(), shape.stride()), index)
