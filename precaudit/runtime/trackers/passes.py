"""Counts forward passes whose graph was dropped without a backward: a loop that leaves out steps with a NaN loss.

Only until the first backward, for a module in training mode with gradients on, and once an optimizer was built: what is
only evaluated trains nothing. From the first such pass on, ops are seen as in a traced step.

Known limitations: while the loss of one pass is still there, the next one is not told from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..events import BackwardBegan, Bus, PassDropped
from ..operations import Operations, Scout
from ..sites import enclosing_module
from .window import Window

MOST = 25
"""Passes that are looked at."""
KEY = "precaudit"
"""What the mark is called among what an autograd node carries for anomaly mode."""


class Mark:
    """Goes with the graph that it was put into."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __del__(self) -> None:  # at any time, in any thread: nothing more is done here
        self._passes.fell = True


class Passes(Scout):
    """Asked for each op before the first backward."""

    def __init__(self, bus: Bus, operations: Operations, window: Window) -> None:
        self._bus, self._window = bus, window
        self.follows = True
        operations.scout = self
        self.dropped = 0
        self.fell = False
        """The graph that was marked is gone."""
        self._marked = False
        self._trains = True
        """The last module that was seen to run is in training mode."""
        bus.on(BackwardBegan, self._backward_began, always=True)

    def _backward_began(self, event: BackwardBegan) -> None:
        self.follows = False

    def sees(self, args: Any) -> bool:
        if self.fell:
            self.end()
        if not self._marked and torch.is_grad_enabled():
            self._mark(args)
        return self.dropped > 0

    def _mark(self, args: Any) -> None:
        node = next((a.grad_fn for a in args if isinstance(a, Tensor) and a.grad_fn is not None), None)
        if node is None:
            return
        module = enclosing_module(torch.nn.Module)
        if module is not None:
            self._trains = module.training
        if self._trains:
            node.metadata[KEY] = Mark(self)
            self._marked = True

    def end(self) -> None:
        """A pass is over, or the program."""
        self.fell = False
        if self._marked and self.follows:
            self._marked = False
            self.dropped += 1
            self._bus.tell(PassDropped())
            self.follows = self.dropped < MOST

    def notes(self) -> list[str]:
        """What to say of it in the report."""
        if not self.dropped or self._window.micro_batches:
            return []
        return ["forward passes ended without a backward: what they held is judged, and no step was taken"]
