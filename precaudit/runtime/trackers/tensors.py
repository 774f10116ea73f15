"""Who is this tensor? One record per storage, gone with the memory: what was learnt of it, never what was guessed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Cause, Role, Site
from .. import torch_private as private


class Place:
    """Where the numbers of a tensor lie: enough to see them again while they are there, and nothing that keeps them."""

    __slots__ = ("dtype", "offset", "record", "shape", "stride")

    def __init__(self, record: Record, own: Tensor) -> None:
        self.record = record
        """That of its memory."""
        self.dtype = own.dtype
        self.offset = own.storage_offset() if record else 0
        """In elements, from the beginning of its storage."""
        self.shape = own.shape
        self.stride = own.stride() if record else ()

    @property
    def nbytes(self) -> int:
        return int(self.shape.numel()) * int(self.dtype.itemsize)

    def holds(self, offset: int) -> bool:
        """Whether an element of its storage is among these, as far as they lie side by side."""
        return self.offset <= offset < self.offset + int(self.shape.numel())

    def tensor(self) -> Tensor | None:
        """Another tensor of the same numbers; None where the memory is gone."""
        storage = private.storage_of(self.record.storage) if self.record else None
        if storage is None:
            return None
        made = torch.empty(0, dtype=self.dtype, device=storage.device)
        return made.set_(storage, self.offset, self.shape, self.stride)


class Leaf(Place):
    """A tensor that gradients are accumulated for, as it was when it was last met.

    Nothing here refers to the tensor itself: a weak reference to it would make `torch.utils.swap_tensors` refuse it,
    and a strong one would keep it. `Holders.find` finds it again where a module holds it.
    """

    __slots__ = ("gradient", "id", "micro_batches", "numbers", "scaled")

    def __init__(self, record: Record, own: Tensor) -> None:
        super().__init__(record, own)
        self.id = 0
        """`id` of the tensor; another one may get it once the memory is gone."""
        self.gradient: Place | None = None
        """Its `.grad` after the last backward."""
        self.micro_batches = 0
        """How many backward passes that is the sum of."""
        self.scaled: tuple[weakref.ref[Any], int] | None = None
        """Its gradient carries a loss scale: by which scaler, in which generation."""
        self.numbers: Any = None
        """What its updates lost: kept.Totals."""


NO_WRITES: frozenset[str] = frozenset()


@cache
def _same(writes: frozenset[str]) -> frozenset[str]:
    """One object for all equal ones: there are as many as parameters."""
    return writes


class Record:
    """All that is known of one storage. A field that nobody filled says nothing: no default is there to guess by."""

    # Most records have these alone; there are several for each parameter. What is rarely filled has its class's value.
    __slots__ = (
        "__dict__",
        "by_optimizer",
        "gradient_of",
        "leaf",
        "marks",
        "parameter",
        "slot",
        "storage",
        "version",
        "writes",
    )

    storage: int
    """torch's weak reference to the storage, as a number. While it is held, no other storage gets this address."""
    leaf: Leaf | None
    """The leaf whose memory this is, trained or not; the first of several."""
    leaves: dict[int, Leaf] | None = None
    """Where several leaves lie in this memory: which begins at which element."""
    parameter: Leaf | None
    """A leaf in this memory that backward reached, or that an optimizer steps on."""
    gradient_of: Leaf | None
    """The leaf whose `.grad` this is; the first of several."""
    gradients: dict[int, Leaf] | None = None
    """Where the `.grad` of several leaves lies in this memory: whose begins at which element."""
    sums_gradients: bool = False
    """A framework sums gradients here, beside any `.grad`."""
    is_input: bool = False
    """A leaf that autograd.grad differentiated by, beside a loop that trains by `.backward()`."""
    by_optimizer: bool  # an optimizer steps on it or keeps it in its state
    slot: str | None
    """The optimizer's own name for a state: "exp_avg_sq"; "" where it has none."""
    claimed: Role | None = None  # by the newest account of a framework
    is_loss: bool = False  # backward was called on it
    # -- where it comes from
    born_low: Cause | None = None
    """Where a module got it as a parameter in low precision."""
    cast: Cause | None = None
    """The cast of a module that made this parameter low."""
    cast_late: Cause | None = None  # such a cast while an optimizer held it
    halved_at: Site | None = None
    """Where its own module's methods made it float16."""
    low_buffer: Cause | None = None
    """Where a module got it as a buffer in low precision, or cast it."""
    made_at: Site | None = None
    """The user's line that made it low, without gradient."""
    # -- what it is used for
    copies_parameter: bool = False
    """It began as a copy of a parameter, made without gradient."""
    moved_by_optimizer: bool = False  # such a copy that the optimizer itself writes to
    is_master: bool = False  # low-precision parameters are copied from it
    compensates: bool = False  # what Kahan summation carries to the next step
    runs: bool = False  # a normalisation's running statistics
    table_since: int | None = None
    """What may be a table by position: the clock when it was first met. It is there again at the next backward."""
    # -- what was written to a parameter
    version: int
    """Rises with every in-place write the trace saw."""
    writes: frozenset[str]
    """"update", "copy" (from a float32 master), "kahan", "stochastic"; add to it by `written`."""
    written_at: Site | None = None
    """Where a wide one was last copied over, outside of an optimizer's step."""
    copied_from: Record | None = None
    """The float32 memory that it was last copied from."""
    moved_by: Record | None = None
    """The low-precision memory that was last added to it."""
    updates: dict[tuple[int, int], Any] | None = None
    """What else is updated in place here, by offset and elements: a long_lived.Write of each."""
    # -- what its value descends from
    marks: dict[str, Any] | None
    """See lineage.SURVIVES."""
    lineage: Any = None
    """How often it was replaced by what was computed from it: a lineage.Lineage."""

    def __init__(self, storage: int) -> None:
        self.storage, self.version = storage, 1
        self.leaf = self.parameter = self.gradient_of = self.slot = self.marks = None
        self.by_optimizer, self.writes = False, NO_WRITES

    def written(self, how: str) -> None:
        """Learns how this parameter is written to."""
        if how not in self.writes:
            self.writes = _same(self.writes | {how})

    def leaf_at(self, tensor: Tensor) -> Leaf | None:
        """The leaf that a tensor of this memory is, or is a view of."""
        return _at(self.leaves, tensor) if self.leaves else self.leaf

    def gradient_owner(self, tensor: Tensor) -> Leaf | None:
        """The leaf whose `.grad` a tensor of this memory is."""
        return self.gradients.get(tensor.storage_offset()) if self.gradients else self.gradient_of

    def __bool__(self) -> bool:
        """Whether it is that of a storage: not NOBODY, nor one of a tensor without storage."""
        return self.storage != 0

    def forget(self) -> None:
        """Lets go of the memory's address, and of other records, of which there would be chains as long as the run.

        Called by the map that holds it, not by `__del__`: what the program's signal handler raises there is dropped.
        """
        storage, self.storage = self.storage, 0
        if storage:
            private.free_weak_storage(storage)
        self.leaf = self.parameter = self.gradient_of = self.marks = None
        for name in OF_OTHERS:
            if getattr(self, name) is not None:
                setattr(self, name, None)

    @property
    def expired(self) -> bool:
        """Whether the memory is gone."""
        return not self.storage or private.storage_is_gone(self.storage)

    @property
    def is_gradient(self) -> bool:
        """Whether this is some leaf's `.grad`, or a framework's sum of gradients."""
        return self.gradient_of is not None or self.sums_gradients


OF_OTHERS = ("leaves", "gradients", "copied_from", "moved_by", "updates", "lineage")
"""Fields that refer to other records."""

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
        try:
            return self._records.get(_address(tensor), NOBODY)
        except private.NO_STORAGE:
            return NOBODY

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether it lies in a parameter's memory, as `p.data` does."""
        return self.of(tensor).parameter is not None

    def is_gradient(self, tensor: Tensor) -> bool:
        """Whether it lies in the memory of some leaf's `.grad`, or of a framework's sum of gradients."""
        return self.of(tensor).is_gradient

    def is_input(self, tensor: Tensor) -> bool:
        """Whether it is a leaf of autograd.grad in a loop that trains by `.backward()`."""
        return self.of(tensor).is_input

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

    def known(self, tensors: Iterable[Tensor]) -> list[Record]:
        """The records of many tensors, each with storage, to read only."""
        find, address = self._records.get, _address
        try:
            return [find(address(tensor), NOBODY) for tensor in tensors]
        except private.NO_STORAGE:
            return [self.of(tensor) for tensor in tensors]

    def leaf(self, tensor: Tensor) -> Leaf | None:
        """The leaf that this tensor is, or a view of it, where it was met."""
        own = private.local(tensor)
        return self.of(own).leaf_at(own)

    def meet(self, tensor: Tensor) -> Leaf:
        """The leaf that this tensor is: its memory may be another's since `swap_tensors` or `p.data = ...`."""
        own = private.local(tensor)
        known = self.learn(own)
        offset = own.storage_offset() if known else 0
        found = known.leaf if known.leaves is None else known.leaves.get(offset)
        if found is None or found.offset != offset or found.dtype is not own.dtype:
            found = self._met_first(known, own)
        found.id = id(tensor)
        return found

    @staticmethod
    def _met_first(known: Record, own: Tensor) -> Leaf:
        made = Leaf(known, own)
        if known.leaf is None or known.leaf.offset == made.offset:
            known.leaf = made
        elif known.leaves is None:
            known.leaves = {known.leaf.offset: known.leaf}
        if known.leaves is not None:
            known.leaves[made.offset] = made
        return made

    def meet_parameter(self, tensor: Tensor) -> bool:
        """Learns that a leaf is trained; False where its memory was known for that."""
        return self.is_trained(self.meet(tensor))

    @staticmethod
    def is_trained(leaf: Leaf) -> bool:
        """Learns that this leaf is trained; False where its memory was known for that."""
        if leaf.record.parameter is not None:
            return False
        leaf.record.parameter = leaf
        return True

    def meet_gradient(self, tensor: Tensor, gradient: Tensor) -> Leaf:
        """Learns that a leaf has this `.grad`."""
        leaf, own = self.meet(tensor), private.local(gradient)
        known = self.learn(own)
        made = leaf.gradient = Place(known, own)
        first = known.gradient_of
        if first is None:
            known.gradient_of = leaf
        elif first is not leaf:
            if known.gradients is None:
                known.gradients = {first.gradient.offset: first} if first.gradient is not None else {}
            known.gradients[made.offset] = leaf
        return leaf

    def leaves(self) -> Iterator[Leaf]:
        """Every leaf that is still there."""
        for known in self.living():
            yield from known.leaves.values() if known.leaves else (known.leaf,) if known.leaf else ()

    def with_gradient(self) -> list[Leaf]:
        """The leaves whose `.grad` is still there."""
        found: list[Leaf] = []
        for known in self._records.values():
            if known.gradient_of is not None and not known.expired:
                found += known.gradients.values() if known.gradients else (known.gradient_of,)
        return [leaf for leaf in found if not leaf.record.expired]

    def living(self) -> Iterator[Record]:
        """The records of memory that is still there."""
        return (record for record in list(self._records.values()) if not record.expired)

    def forget_expired(self) -> None:
        """Drops the records of freed memory; call at step boundaries."""
        gone = private.storage_is_gone
        for key in [key for key, record in self._records.items() if not record.storage or gone(record.storage)]:
            self._records.pop(key).forget()
        self._many = max(MANY, len(self._records) * 3 // 2)

    def forget_all(self) -> None:
        """The trace is over."""
        while self._records:
            self._records.popitem()[1].forget()


_address = private.storage_address


def _at(leaves: dict[int, Leaf], tensor: Tensor) -> Leaf | None:
    """The leaf that begins where this tensor does, or in which it lies."""
    offset = tensor.storage_offset()
    found = leaves.get(offset)
    return found or next((leaf for leaf in leaves.values() if leaf.holds(offset)), None)
