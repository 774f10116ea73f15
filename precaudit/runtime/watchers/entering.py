"""Carries what may enter a loss over in-place writes, and sees losses that one kernel computes take it in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..optable import COPIES, LOSS_KERNELS, SELF_UPDATES
from ..trackers.entering import Entering
from . import FORWARD, Registration, Watcher

LOSSES = LOSS_KERNELS | {"xlogy", "dot"}
"""Losses that are one op, and what they are written with."""
WRITES = SELF_UPDATES | COPIES | {"index_put_", "index_copy_", "masked_fill_", "masked_scatter_", "scatter_"}


class EnteringLosses(Watcher):
    """`advantages[t] = last` before the loss, `F.mse_loss(values, advantages)` in it."""

    def __init__(self, entering: Entering) -> None:
        self._entering = entering

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, LOSSES | WRITES, self.through, False

    def through(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if self._entering.any:
            self._entering.through(name, args, args[0] if name in WRITES else out)
