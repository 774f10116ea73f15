"""Float64 numbers beside the program's memory: for each storage, what it would hold if nothing had been rounded.

A companion is laid out as the storage it stands beside, number for number: a view of one is a view of the other, and a
write through one view shows in all. A storage without a companion holds what it holds exactly: data, random numbers,
the parameters that the step begins with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import FLOATING_DTYPES

WIDE: dict[Any, Any] = {
    **dict.fromkeys(FLOATING_DTYPES, torch.float64),
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
    torch.complex128: torch.complex128,
}
"""dtype -> that of its companion."""
OFTEN = 64
"""Companions made between two looks for memory that was freed."""
MUCH = 1 << 21
"""Numbers made between two such looks, where that is sooner."""


def wide(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in float64, in memory of their own."""
    return tensor.detach().to(WIDE[tensor.dtype], copy=True)


class Companion:
    """The float64 numbers of one storage."""

    __slots__ = ("dtype", "flat", "nbytes", "partial", "record", "storage", "unit")

    def __init__(self, tensor: Tensor, flat: Tensor | None, partial: bool) -> None:
        self.flat = flat
        """One float64 for each real number of the storage; two for a complex one. None where it holds what it holds."""
        self.unit, self.dtype = _unit(tensor), tensor.dtype
        self.nbytes = tensor.untyped_storage().nbytes()
        self.storage = private.weak_storage_number(tensor)
        """While it is held, no other storage gets this one's address."""
        self.partial = partial
        """Something that could not be followed went into it: it is exact only from there on."""
        self.record = -1
        """The number of the operation that wrote it last."""

    def fits(self, tensor: Tensor) -> bool:
        """Whether this tensor reads the storage as numbers of the same size."""
        return tensor.dtype is self.dtype or self.unit == _unit(tensor)

    def view(self, tensor: Tensor) -> Tensor:
        """What stands for this tensor, which lies in the storage."""
        if self.flat is None:
            return wide(tensor)
        if WIDE[tensor.dtype] is torch.float64 and not tensor.is_neg():
            return self.flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        flat = self.flat.view(torch.complex128) if tensor.is_complex() else self.flat
        seen = flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        seen = seen.conj() if tensor.is_conj() else seen
        return torch._neg_view(seen) if tensor.is_neg() else seen


def _unit(tensor: Tensor) -> int:
    """Bytes of a real number."""
    size = int(tensor.element_size())
    return size // 2 if tensor.is_complex() else size


class Companions:
    """One for each storage that has one; gone soon after the storage is."""

    def __init__(self) -> None:
        self._held: dict[int, Companion] = {}
        self._made = self._numbers = 0
        """Companions and numbers since the last look for freed memory."""
        self.held = self.most = 0
        """Numbers held now, and at most."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def __iter__(self) -> Iterator[Companion]:
        return iter(self._held.values())

    def find(self, tensor: Tensor) -> Companion | None:
        """The companion of the tensor's storage; None where it holds what it holds exactly."""
        if not self._held:
            return None
        key = private.storage_key(tensor)
        found = self._held.get(key)
        if found is not None and not found.fits(tensor):
            self._drop(key)
            return None
        return found

    def of(self, tensor: Tensor) -> Tensor | None:
        """What stands for this tensor."""
        found = self.find(tensor)
        return None if found is None else found.view(tensor)

    def writable(self, tensor: Tensor) -> Companion | None:
        """The companion of the tensor's storage, made now of what it holds; None for a tensor without storage."""
        found = self.find(tensor)
        if (found is not None and found.flat is not None) or not private.storage_key(tensor):
            return found
        count = tensor.untyped_storage().nbytes() // tensor.element_size()
        plain = tensor.conj() if tensor.is_conj() else tensor
        plain = torch._neg_view(plain) if plain.is_neg() else plain
        flat = wide(torch.as_strided(plain.detach(), (count,), (1,), 0))
        partial = found is not None and found.partial
        return self._put(tensor, torch.view_as_real(flat).reshape(-1) if tensor.is_complex() else flat, partial)

    def keep(self, tensor: Tensor, exact: Tensor, partial: bool, own: bool) -> Companion | None:
        """Has `exact` stand for a tensor that an op has just made; with `own` its memory is nobody else's."""
        if not private.storage_key(tensor):
            return None
        count = tensor.untyped_storage().nbytes() // _unit(tensor)
        whole = exact.untyped_storage().nbytes() == 8 * count and exact.dtype is torch.float64
        if own and whole and exact.stride() == tensor.stride() and exact.storage_offset() == tensor.storage_offset():
            return self._put(tensor, exact.as_strided((count,), (1,), 0), partial)
        found = self._put(tensor, torch.empty(count, dtype=torch.float64, device=tensor.device), partial)
        found.view(tensor).copy_(exact)
        return found

    def branch(self, tensor: Tensor, other: Companion | None) -> Companion:
        """A companion of the tensor's storage that begins with what another lineage's holds."""
        if other is None or other.flat is None:
            found = self.writable(tensor)
            assert found is not None, "a tensor without storage is not written to"
            return found
        return self._put(tensor, other.flat.clone(), other.partial)

    def forget(self, tensor: Tensor) -> None:
        """From here on its storage holds what it holds exactly."""
        self._drop(private.storage_key(tensor))

    def lose(self, tensor: Tensor) -> None:
        """What this should be is not known: from here on it holds what it holds, and that is remembered."""
        found = self.find(tensor)
        if found is not None and found.flat is not None and tensor.numel() * _unit(tensor) < found.nbytes:
            found.view(tensor).copy_(tensor)
            found.partial = True
        elif private.storage_key(tensor):
            self._put(tensor, None, True)

    def clear(self) -> None:
        for key in list(self._held):
            self._drop(key)

    def _put(self, tensor: Tensor, flat: Tensor | None, partial: bool) -> Companion:
        if self._made >= max(OFTEN, len(self._held) // 4) or self._numbers >= max(MUCH, self.held // 4):
            self.sweep()
        key = private.storage_key(tensor)
        self._drop(key)
        made = self._held[key] = Companion(tensor, flat, partial)
        numbers = 0 if flat is None else flat.numel()
        self._made += 1
        self._numbers += numbers
        self.held += numbers
        self.most = max(self.most, self.held)
        return made

    def sweep(self) -> None:
        """Lets go what stands beside memory that was freed."""
        for key in [key for key, one in self._held.items() if private.storage_is_gone(one.storage)]:
            self._drop(key)
        self._made = self._numbers = 0

    def _drop(self, key: int) -> None:
        gone = self._held.pop(key, None)
        if gone is not None:
            self.held -= 0 if gone.flat is None else gone.flat.numel()
            private.free_weak_storage(gone.storage)
