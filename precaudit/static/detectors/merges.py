"""PA304: frozen weights to which an adapter is added and from which it is subtracted again, in low precision."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Param, Spot, is_low
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Update
from precaudit.static.overlays.torch import handwritten, operands


def listen(bus: Bus) -> None:
    Merges(bus)


class Merges:
    """What one turn rounds the next does not give back: the weights drift away from those that were loaded."""

    def __init__(self, bus: Bus) -> None:
        self._seen: dict[int, dict[str, Spot]] = {}
        bus.on_update(self._updated)

    def _updated(self, update: Update) -> None:
        run, target, how = update.run, update.target, update.how
        if not isinstance(target, Param) or not is_low(target.dtype) or target.trainable is not False:
            return
        added = operands.marks_of([operands.as_tensor(run, value) for value in update.added])
        if how not in ("add", "sub") or "gradient" in added or handwritten.current_optimizer(run) is not None:
            return
        seen = self._seen.setdefault(id(target.store), {})
        seen.setdefault(how, run.spot(update.node))
        if len(seen) == 2:
            run.facts.take_back(target.store.get("spot") or seen["add"], what="ema")
            because = ("it is taken back here", seen["sub"])
            detail = "merging and unmerging rounds them twice"
            run.facts.add(Kind.HOLDS, seen["add"], target.dtype, Role.ACCUMULATOR, because, detail, what="running")
