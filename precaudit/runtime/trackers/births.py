"""Remembers where low-precision tensors without gradient were made, so that an accumulator's report names that line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..dtypes import LOW
from ..events import BirthsMatter, BirthsOver, Bus, OptimizerBuilt, RestBegan, RestEnded, WindowOpened
from ..operations import ANY, EARLY, FORWARD, GRADIENTS, LOW_RESULTS, OPTIMIZER, Heard, Op, Operations
from ..sites import user_site
from .tensors import Tensors
from .window import Window

MAKERS = frozenset(
    "zeros zeros_like ones ones_like full full_like empty empty_like empty_strided new_zeros new_empty new_full "
    "scalar_tensor lift_fresh clone _to_copy".split()
)


class Births:
    """Learns the user's line that made a tensor: from the first optimizer's construction on."""

    def __init__(self, bus: Bus, operations: Operations, window: Window, tensors: Tensors) -> None:
        self._bus, self._window, self._tensors = bus, window, tensors
        self._matter = False
        operations.on(self._hear)
        bus.on(OptimizerBuilt, self._optimizer_built)
        bus.on(RestBegan, lambda event: self._stop())
        bus.on(RestEnded, lambda event: self._start())
        bus.on(WindowOpened, lambda event: self._stop())

    def _hear(self, op: Op) -> Iterable[Heard]:
        if op.name in MAKERS:
            yield Heard(EARLY, self.made, ANY)
            for phase in (FORWARD, GRADIENTS, OPTIMIZER):
                yield Heard(phase, self.made, LOW_RESULTS)

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        if not self._window.attempts:
            self._start()

    def _start(self) -> None:
        """Unless every op is seen."""
        if not self._matter and not self._window.tracing:
            self._matter = True
            self._bus.tell(BirthsMatter())

    def _stop(self) -> None:
        if self._matter:
            self._matter = False
            self._bus.tell(BirthsOver())

    def made(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """An op of MAKERS has run."""
        copies = name in ("clone", "_to_copy")
        if copies and self._tensors.of(args[0]).parameter and not torch.is_grad_enabled():
            self._tensors.learn(out).copies_parameter = True
        if isinstance(out, Tensor) and out.dtype in LOW and self._tensors.of(out).made_at is None:
            if copies and torch.is_grad_enabled() and args[0].requires_grad:
                return
            site = user_site()
            if site is not None:
                self._tensors.learn(out).made_at = site
