"""Float64 numbers beside the program's memory: for each storage, what it would hold if nothing had been rounded.

A companion is laid out as the storage it stands beside, number for number: a view of one is a view of the other, and a
write through one view shows in all. A storage without a companion holds what it holds exactly: data, random numbers,
the parameters that the step begins with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def floats(values: Iterable[Any]) -> Iterator[Tensor]:
    """The floating tensors among these, those inside lists included."""
    for value in values:
        if isinstance(value, Tensor):
            if value.dtype in WIDE and value.layout is torch.strided:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from floats(value)


class Companion:
    """The float64 numbers of one storage."""

    __slots__ = (
        "_exact", "_flat", "_offset", "_plain", "_size", "_stride",
        "awaited", "count", "differs", "dtype", "nbytes", "partial", "record", "storage", "unit",
    )  # fmt: skip

    def __init__(self, tensor: Tensor, exact: Tensor | None, partial: bool) -> None:
        self._exact = exact
        """It stands for `tensor`, and its memory is that of all numbers; None where the storage holds what it holds."""
        self._size, self._stride, self._offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        self._plain = not (tensor.is_complex() or tensor.is_neg())
        """`tensor` holds its numbers as they stand in memory."""
        self._flat: Tensor | None = None
        self.differs = exact is not None
        self.unit, self.dtype = _unit(tensor), tensor.dtype
        self.nbytes = tensor.untyped_storage().nbytes()
        self.count = self.nbytes // self.unit if self.differs else 0
        """Of its numbers: one for each real number of the storage, two for a complex one."""
        self.storage = private.weak_storage_number(tensor)
        """While it is held, no other storage gets this one's address."""
        self.partial = partial
        """Something that could not be followed went into it: it is exact only from there on."""
        self.awaited = False
        """A collective writes to the storage, perhaps when it is waited for."""
        self.record = -1
        """The number of the operation that wrote it last."""

    def fits(self, tensor: Tensor) -> bool:
        """Whether this tensor reads the storage as numbers of the same size."""
        return tensor.dtype is self.dtype or self.unit == _unit(tensor)

    @property
    def flat(self) -> Tensor | None:
        """All its numbers, one after the other."""
        if self._flat is None and self._exact is not None:
            real = torch.view_as_real(self._exact.resolve_conj()) if self._exact.is_complex() else self._exact
            self._flat = real.as_strided((self.count,), (1,), 0)
        return self._flat

    @property
    def memory(self) -> int:
        """The address of its own numbers."""
        return 0 if self._exact is None else private.storage_key(self._exact)

    def view(self, tensor: Tensor) -> Tensor:
        """What stands for this tensor, which lies in the storage."""
        if self._exact is None:
            return wide(tensor)
        if (
            self._plain
            and tensor.size() == self._size
            and tensor.stride() == self._stride
            and tensor.storage_offset() == self._offset
            and not (tensor.is_neg() or tensor.is_complex())
        ):  # as most are
            return self._exact
        flat = self.flat
        assert flat is not None, "it differs"
        if tensor.is_complex():
            flat = flat.view(torch.complex128)
        seen = flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        seen = seen.conj() if tensor.is_conj() else seen
        return torch._neg_view(seen) if tensor.is_neg() else seen


def _line(tensor: Tensor) -> Tensor:
    """All that the tensor's storage holds, in numbers of its dtype."""
    plain = tensor.detach()
    plain = plain.conj() if plain.is_conj() else plain
    plain = torch._neg_view(plain) if plain.is_neg() else plain
    return torch.as_strided(plain, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


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
        return self.at(private.storage_key(tensor), tensor) if self._held else None

    def at(self, key: int, tensor: Tensor) -> Companion | None:
        """The same, where the key of the tensor's storage is known."""
        found = self._held.get(key)
        if found is not None and tensor.dtype is not found.dtype and not found.fits(tensor):
            self._drop(key)
            return None
        return found

    def among(self, tensors: list[Tensor], keys: list[int]) -> dict[int, Companion]:
        """id of a tensor -> the companion of its storage, for those of these tensors whose storage has one."""
        found: dict[int, Companion] = {}
        if self._held:
            for tensor, key in zip(tensors, keys, strict=True):
                one = self._held.get(key)
                if one is not None and (one.dtype is tensor.dtype or self.at(key, tensor) is not None):
                    found[id(tensor)] = one
        return found

    def of(self, tensor: Tensor) -> Tensor | None:
        """What stands for this tensor."""
        found = self.find(tensor)
        return None if found is None else found.view(tensor)

    def reading(self, tensor: Tensor) -> Tensor:
        """The same, of its own where there is none."""
        found = self.of(tensor)
        return wide(tensor) if found is None else found.clone()

    def writable(self, tensor: Tensor) -> Companion | None:
        """The companion of the tensor's storage, made now of what it holds; None for a tensor without storage."""
        found = self.find(tensor)
        if (found is not None and found.differs) or not private.storage_key(tensor):
            return found
        partial = found is not None and found.partial
        line = _line(tensor)
        if tensor.numel() == line.numel() and not tensor.is_neg():
            exact = wide(tensor)
            if exact.stride() == tensor.stride() and not exact.is_conj():
                return self._put(tensor, exact, partial)
        return self._put(line, wide(line), partial)

    def keep(self, tensor: Tensor, exact: Tensor, partial: bool, own: bool) -> Companion | None:
        """Has `exact` stand for a tensor that an op has just made; with `own` its memory is nobody else's."""
        if not private.storage_key(tensor):
            return None
        whole = exact.dtype is torch.float64 and exact.untyped_storage().nbytes() == 8 * (
            tensor.untyped_storage().nbytes() // _unit(tensor)
        )
        if own and whole and exact.stride() == tensor.stride() and exact.storage_offset() == tensor.storage_offset():
            return self._put(tensor, exact, partial)
        found = self._room(tensor, partial)
        found.view(tensor).copy_(exact)
        return found

    def write(self, tensor: Tensor, exact: Tensor, partial: bool, own: bool) -> None:
        """Has `exact` stand for a tensor that was written to; with `own` its memory is nobody else's."""
        if tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes():
            self.keep(tensor, exact, partial, own)
        elif (entry := self.writable(tensor)) is not None:
            entry.view(tensor).copy_(exact)

    def branch(self, tensor: Tensor, other: Companion | None) -> Companion:
        """A companion of the tensor's storage that begins with what another lineage's holds."""
        if other is None or other.flat is None:
            found = self.writable(tensor)
            assert found is not None, "a tensor without storage is not written to"
            return found
        made = self._room(tensor, other.partial)
        assert made.flat is not None, "it was just made"
        made.flat.copy_(other.flat)
        return made

    def forget(self, tensor: Tensor) -> None:
        """From here on its storage holds what it holds exactly."""
        self._drop(private.storage_key(tensor))

    def lose(self, tensor: Tensor) -> None:
        """What this should be is not known: from here on it holds what it holds, and that is remembered."""
        found = self.find(tensor)
        if found is not None and found.differs and tensor.numel() * _unit(tensor) < found.nbytes:
            found.view(tensor).copy_(tensor)
            found.partial = True
        elif private.storage_key(tensor):
            self._put(tensor, None, True)

    def clear(self) -> None:
        for key in list(self._held):
            self._drop(key)

    def _room(self, tensor: Tensor, partial: bool) -> Companion:
        """A companion of the tensor's storage whose numbers are still to be written."""
        line = _line(tensor)
        return self._put(line, torch.empty_like(line, dtype=WIDE[tensor.dtype]), partial)

    def _put(self, tensor: Tensor, exact: Tensor | None, partial: bool) -> Companion:
        if self._made >= max(OFTEN, len(self._held) // 4) or self._numbers >= max(MUCH, self.held // 4):
            self.sweep()
        key = private.storage_key(tensor)
        self._drop(key)
        made = self._held[key] = Companion(tensor, exact, partial)
        self._made += 1
        self._numbers += made.count
        self.held += made.count
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
            self.held -= gone.count
            private.free_weak_storage(gone.storage)
