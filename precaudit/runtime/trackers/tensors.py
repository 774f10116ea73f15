"""Who is this tensor? One record per storage, gone with the memory: what was learnt of it, never what was guessed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from ...model.vocabulary import Cause, Role, Site
from .. import torch_private as private

V = TypeVar("V")


class Record:
    """All that is known of one storage. A field that nobody filled says nothing: no default is there to guess by."""

    __slots__ = (
        "_storage", "born_low", "by_optimizer", "cast", "claimed", "compensates", "copies_parameter", "gradient_of",
        "is_input", "is_loss", "is_master", "lineage", "low_buffer", "made_at", "marks", "moved_by_optimizer",
        "parameter", "runs", "slot", "sums_gradients", "table_since",
    )  # fmt: skip

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
        self.claimed: Role | None = None
        """Its role by the newest account of a framework."""
        self.is_loss = False
        """Backward was called on it."""
        # -- where it comes from
        self.born_low: Cause | None = None
        """Where a module got it as a parameter in low precision."""
        self.cast: Cause | None = None
        """The cast of a module that made this parameter low."""
        self.low_buffer: Cause | None = None
        """Where a module got it as a buffer in low precision, or cast it."""
        self.made_at: Site | None = None
        """The user's line that made it low, without gradient."""
        # -- what it is used for
        self.copies_parameter = False
        """It began as a copy of a parameter, made without gradient."""
        self.moved_by_optimizer = False
        """Such a copy that the optimizer itself writes to."""
        self.is_master = False
        """Low-precision parameters are copied from it."""
        self.compensates = False
        """What Kahan summation carries to the next step."""
        self.runs = False
        """A normalisation's running statistics."""
        self.table_since: int | None = None
        """What may be a table by position: the clock when it was first met. It is there again at the next backward."""
        # -- what its value descends from
        self.marks: dict[str, Any] | None = None
        """See lineage.SURVIVES."""
        self.lineage: Any = None
        """How often it was replaced by what was computed from it: a lineage.Lineage."""

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


MANY = 10_000
"""Records that are kept without asking whether their memory is still there."""


class Tensors:
    """The records of one session."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}
        self._many = MANY
        """Records from which on those of freed memory are looked for."""

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
                if len(self._records) > self._many:  # a long evaluation has no step boundary
                    self.forget_expired()
        return found

    def living(self) -> Iterator[Record]:
        """The records of memory that is still there."""
        return (record for record in list(self._records.values()) if not record.expired)

    def forget_expired(self) -> None:
        """Drops the records of freed memory; call at step boundaries."""
        for key in [key for key, record in self._records.items() if record.expired]:
            del self._records[key]
        self._many = max(MANY, 2 * len(self._records))


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
