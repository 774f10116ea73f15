"""What wrote to each parameter: updates of its own, copies from a float32 master, whoever wrote them."""

from __future__ import annotations

from torch import Tensor

from ...model.vocabulary import Site
from .. import torch_private as private
from ..dtypes import LOW
from ..events import Bus, ParameterChangedUnseen, ParameterWritten
from ..operations import OPTIMIZER
from ..optable import ADDITIONS, COPIES, RESETS
from ..sites import user_site
from .holders import Holders
from .lineage import Flow
from .tensors import Record, Tensors
from .window import Window


class ParameterWrites:
    """Kept with the memory of each: see Record.writes."""

    def __init__(self, bus: Bus, window: Window, tensors: Tensors, holders: Holders, flow: Flow) -> None:
        self._bus, self._window, self._tensors, self._holders, self._flow = bus, window, tensors, holders, flow
        self.hand_written_at: Site | None = None
        """Where a loop without an Optimizer updates its parameters."""
        bus.on(ParameterChangedUnseen, self._changed_unseen)

    def book(self, name: str, target: Tensor, sources: list[Tensor]) -> None:
        """Whether a parameter is updated in place, or only copied from a float32 master."""
        known = self._tensors.learn(target)
        if self._window.phase != OPTIMIZER:
            self._bus.tell(ParameterWritten())
            if self.hand_written_at is None:
                self.hand_written_at = user_site()
        if target.dtype not in LOW:
            if self._window.phase != OPTIMIZER and name in COPIES:
                known.written_at = user_site()
            self.updated(known)
            return
        known.version += 1
        for source in sources[:1]:
            if name in COPIES:
                marks = self._flow.of(source)
                if "random" in marks:
                    known.written("stochastic")
                    return
                cast = marks.get("cast_of")
                if source.dtype.is_floating_point and source.dtype not in LOW:
                    known.moved_by = marks.get("adds", known.moved_by)
                    self._copied(known, source, self._tensors.learn(source))
                    return
                if cast and cast.dtype not in LOW and not cast.source.expired:
                    self._copied(known, source, cast.source)
                    return
            if source.dtype in LOW and name in ADDITIONS:
                known.moved_by = self._tensors.learn(source)
        if name not in RESETS:
            known.written("update")

    @staticmethod
    def updated(known: Record) -> None:
        """A wide parameter was written to: whatever it is computed from, it keeps what that gives."""
        known.version += 1
        known.written("update")

    def _copied(self, known: Record, source: Tensor, origin: Record) -> None:
        """A parameter was copied from float32: from a master, if that is there again at the next step."""
        before, known.copied_from = known.copied_from, origin
        if self._tensors.of(source).by_optimizer or before is origin:
            known.written("copy")
            if source.dtype not in LOW:
                self._tensors.learn(source).is_master = True
        elif before is not None:
            known.written("update")

    def _changed_unseen(self, event: ParameterChangedUnseen) -> None:
        known = self._tensors.learn(private.local(event.parameter))
        if not known.writes:
            known.written(event.how)

    def leaves(self) -> list[Tensor]:
        """Parameters that were written to and are still there."""
        found = (known.parameter for known in self._tensors.living() if known.writes)
        return [leaf for leaf in map(self._holders.find, filter(None, found)) if leaf is not None]
