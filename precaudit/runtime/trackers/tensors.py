"""Remembers things about tensors and storages without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from .. import torch_private as private

V = TypeVar("V")


class TensorMap(Generic[V]):
    """Tensor object -> value, for as long as the object lives. A reused id is never taken for the old tensor."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], V]] = {}

    def set(self, tensor: Tensor, value: V) -> None:
        key = id(tensor)
        self._entries[key] = (weakref.ref(tensor), value)

    def get(self, tensor: Tensor) -> V | None:
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def pop(self, tensor: Tensor) -> V | None:
        value = self.get(tensor)
        self._entries.pop(id(tensor), None)
        return value

    def items(self) -> Iterator[tuple[Tensor, V]]:
        for ref, value in list(self._entries.values()):
            tensor = ref()
            if tensor is not None:
                yield tensor, value

    def clear(self) -> None:
        self._entries.clear()


class StorageMap(Generic[V]):
    """Storage -> value. The weak reference it holds pins the key, so an entry can never speak of a later tensor."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, V]] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: int) -> bool:
        """Whether the storage with this key, while it lives, has a value."""
        return key in self._entries and not self._entries[key][0].expired()

    def at(self, key: int) -> V | None:
        """The value of the storage with this key, while it lives."""
        return self._entries[key][1] if key in self else None

    def set(self, tensor: Tensor, value: V) -> None:
        key = private.storage_key(tensor)
        if key:
            self._entries[key] = (private.weak_storage(tensor), value)

    def get(self, tensor: Tensor) -> V | None:
        if not self._entries:
            return None
        entry = self._entries.get(private.storage_key(tensor))
        return entry[1] if entry is not None else None

    def pop(self, tensor: Tensor) -> V | None:
        entry = self._entries.pop(private.storage_key(tensor), None) if self._entries else None
        return entry[1] if entry is not None else None

    def drop_expired(self) -> None:
        """Forgets storages that were freed; call at step boundaries."""
        for key in [key for key, (ref, _) in self._entries.items() if ref.expired()]:
            del self._entries[key]

    def living(self) -> Iterator[V]:
        for ref, value in list(self._entries.values()):
            if not ref.expired():
                yield value

    def clear(self) -> None:
        self._entries.clear()
