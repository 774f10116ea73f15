"""PA304: frozen weights to which adapters are added, low: subtracted again, or added again as it goes on."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Dtypes, Param, Spot, is_low
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op, Update
from precaudit.static.overlays.torch import handwritten, operands


def listen(bus: Bus) -> None:
    Merges(bus)


class Merges:
    """What one turn rounds the next does not give back: the weights drift away from those that were loaded."""

    def __init__(self, bus: Bus) -> None:
        self._seen: dict[int, dict[str, Spot]] = {}
        self._trained = False
        self._merged: dict[int, tuple[Dtypes, Spot]] = {}
        """By the identity of frozen weights' store that were added to since a step: their dtype, and where."""
        bus.on_update(self._updated)
        bus.on("optimizer.stepped", self._stepped, low_only=False)

    def _updated(self, update: Update) -> None:
        run, target, how = update.run, update.target, update.how
        if not isinstance(target, Param) or not is_low(target.dtype) or target.trainable is not False:
            return
        if how == "copy":
            self._merged.pop(id(target.store), None)  # put back as they were, or loaded anew
        added = operands.marks_of([operands.as_tensor(run, value) for value in update.added])
        if how not in ("add", "sub") or "gradient" in added or handwritten.current_optimizer(run) is not None:
            return
        seen = self._seen.setdefault(id(target.store), {})
        seen.setdefault(how, run.spot(update.node))
        averaged = "weights" in added or target.store.get("kind") == "buffer"
        if self._trained and not averaged and how == "add" and target.dtype is not None:
            self._merged[id(target.store)] = target.dtype, run.spot(update.node)
        if len(seen) == 2:
            run.facts.take_back(target.store.get("spot") or seen["add"], what="ema")
            because = ("it is taken back here", seen["sub"])
            detail = "merging and unmerging rounds them twice"
            run.facts.add(Kind.HOLDS, seen["add"], target.dtype, Role.ACCUMULATOR, because, detail, what="running")

    def _stepped(self, op: Op) -> None:
        """The training goes on after a merge: there will be more of them, each rounded."""
        self._trained = True
        for dtype, spot in self._merged.values():
            because, detail = ("the training goes on here", op.spot), "each merge rounds them"
            op.run.facts.add(Kind.HOLDS, spot, dtype, Role.ACCUMULATOR, because, detail, what="running")
        self._merged.clear()
