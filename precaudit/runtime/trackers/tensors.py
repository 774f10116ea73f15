"""Who is this tensor? One record per storage, gone with the memory: what was learnt of it, never what was guessed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from .. import torch_private as private

V = TypeVar("V")


class Record:
    """All that is known of one storage. A field that nobody filled says nothing: no default is there to guess by."""

    __slots__ = ("_storage", "by_optimizer", "gradient_of", "is_input", "parameter", "slot", "sums_gradients")

    def __init__(self, storage: int) -> None:
        self._storage = storage
        """torch's weak reference to the storage, as a number. While it is held, no other storage gets this address."""
        self.parameter: weakref.ref[Any] | None = None
        """The leaf whose memory this is: one that backward reached, or an optimizer steps on."""
        self.gradient_of: weakref.ref[Any] | None = None
        """The leaf whose `.grad` this is."""
        self.sums_gradients = False
        """A framework sums gradients here, beside any `.grad`."""
        self.is_input = False
        """A leaf that autograd.grad differentiated by, beside a loop that trains by `.backward()`."""
        self.by_optimizer = False
        """An optimizer steps on it or keeps it in its state."""
        self.slot: str | None = None
        """The optimizer's own name for a state: "exp_avg_sq"; "" where it has none."""

    def __del__(self, free: Any = private.free_weak_storage) -> None:
        if self._storage:
            free(self._storage)

    @property
    def expired(self) -> bool:
        """Whether the memory is gone."""
        return not self._storage or private.storage_is_gone(self._storage)

    @property
    def is_gradient(self) -> bool:
        """Whether this is some leaf's `.grad`, or a framework's sum of gradients."""
        return self.gradient_of is not None or self.sums_gradients


NOBODY = Record(0)
"""The answer for memory of which nothing was learnt; never written to."""


class Tensors:
    """The records of one session."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def of(self, tensor: Tensor) -> Record:
        """What is known of a tensor's storage, whole or seen through a view; to read only. `of(p.data)` is `of(p)`."""
        return self._records.get(private.storage_key(tensor), NOBODY)

    def at(self, key: int) -> Record:
        """What is known of the storage with this key; to read only."""
        found = self._records.get(key, NOBODY)
        return NOBODY if found.expired else found

    def learn(self, tensor: Tensor) -> Record:
        """The record to write to. Of a tensor without storage (sparse) nothing is kept."""
        key = private.storage_key(tensor)
        found = self._records.get(key)
        if found is None:
            found = Record(private.weak_storage_number(tensor) if key else 0)
            if key:
                self._records[key] = found
        return found

    def living(self) -> Iterator[Record]:
        """The records of memory that is still there."""
        return (record for record in list(self._records.values()) if not record.expired)

    def forget_expired(self) -> None:
        """Drops the records of freed memory; call at step boundaries."""
        for key in [key for key, record in self._records.items() if record.expired]:
            del self._records[key]


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
