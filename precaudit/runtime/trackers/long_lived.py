"""Places in memory that are written to again and again, by no optimizer and with no gradient: sums and averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause, Site
from ..dtypes import LOW
from ..optable import COPIES, SELF_UPDATES
from ..sites import user_site
from .kept import Totals
from .lineage import Flow
from .modules import Modules
from .tensors import Record, Tensors
from .window import Window

NO_MARKS: Mapping[str, Any] = {}


@dataclass(slots=True)
class Write:
    """In-place updates of one place in memory that no gradient flows through."""

    memory: Record
    dtype: Any
    shape: tuple[int, ...]
    site: Site | None
    cause: Cause | None = None
    """What put it into low precision."""
    clock: set[int] = field(default_factory=set)
    """The micro-batches it was written in: two of them make it long-lived."""
    sources: set[str] = field(default_factory=set)
    updates_itself: bool = False
    decays: bool = False
    """It is multiplied as well as added to: a moving average or a momentum, not a sum."""
    numbers: Totals = field(default_factory=Totals)


class LongLived:
    """Kept with the memory of each: see Record.updates."""

    def __init__(self, window: Window, tensors: Tensors, flow: Flow, modules: Modules) -> None:
        self._window, self._tensors, self._flow, self._modules = window, tensors, flow, modules

    def book(self, name: str, target: Tensor, sources: list[Tensor]) -> Write:
        """An in-place op wrote these to this place."""
        if target.dtype in LOW:
            self._window.every_micro_batch_counts = True
        known, place = self._tensors.of(target), (target.storage_offset(), target.numel())
        write: Write | None = known.updates.get(place) if known.updates else None
        if write is None:
            write = self._first_write(target, place)
        if name in COPIES and sources and not any(self._comes_from(source, write) for source in sources):
            write.clock.clear()  # written over by what it is no part of: what was rounded until now is gone
        line = self._tensors.of(sources[0]).lineage if name in COPIES and sources else None
        if line is not None and target.dtype not in LOW:
            self._flow.widened(target, line)
        write.clock.add(self._window.clock)
        if name in SELF_UPDATES:
            write.updates_itself = True
            write.decays |= name.removeprefix("_foreach_") in ("mul_", "lerp_")
            if known.lineage is not None and known.lineage.in_wide:
                self._flow.widened(target, known.lineage, moved=True)
        for source in sources:
            origin = self._tensors.of(source)
            marks = origin.marks or NO_MARKS
            # A master that was made from low weights and is copied back to them is no value of their own.
            master = origin.parameter is not None or origin.by_optimizer
            if name in COPIES and not master and write.memory in marks.get("from", ()):
                write.updates_itself = True
            if origin.parameter is not None or "param" in marks:
                write.sources.add("param")
            if origin.is_gradient or "grad" in marks:
                write.sources.add("grad")
            if origin.is_loss:
                write.sources.add("loss")
        return write

    def _comes_from(self, source: Tensor, write: Write) -> bool:
        return write.memory in (self._tensors.of(source).marks or NO_MARKS).get("from", ())

    def _first_write(self, target: Tensor, place: tuple[int, int]) -> Write:
        """A place seen for the first time, with what made it low: its tensor may be a view that lives no longer."""
        known = self._tensors.learn(target)
        write = Write(known, target.dtype, tuple(target.shape), user_site())
        if known.updates is None:
            known.updates = {}
        known.updates[place] = write
        if target.dtype in LOW:
            write.cause = self._modules.why_low(target)
            write.site = (write.cause.site if write.cause else None) or known.made_at or write.site
            # A sum that began as a Python number: `total += loss` is out of place the first time.
            older = known.lineage
            if older is not None and older.start == self._flow.line():
                write.clock.add(older.clock)
        return write

    def of(self, tensor: Tensor) -> Write | None:
        """What was written to this very place."""
        updates = self._tensors.of(tensor).updates
        return updates.get((tensor.storage_offset(), tensor.numel())) if updates else None

    def living(self) -> list[Write]:
        """What is written to in memory that is still there."""
        return [write for known in self._tensors.living() if known.updates for write in known.updates.values()]
