"""PA416: a low-precision measure of how training goes decides on the learning rate, or on when to stop.

Known limitations: a Python number is known to come from a low tensor where that was read in the traced steps; what a
script compares by itself is seen where it compares tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, MetricGiven
from ..operations import FORWARD
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.tensors import Record, Tensors
from ..trackers.window import Window
from . import Registration, Watcher

MOST = 1_000
"""Numbers that are remembered."""
CLOSE = 2
"""Two values so many steps of their dtype apart, or fewer: which of them is better, rounding decides."""
EXACT = 1 / 1024
"""Multiples of this that are not larger than 1 are shares of right answers, exact in any dtype."""


class Metrics(Watcher):
    """Remembers the numbers that were read from low tensors."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors, window: Window) -> None:
        self._ledger, self._tensors, self._window = ledger, tensors, window
        self._compared: dict[Record, int] = {}
        """What was compared with the best so far, and when: it may have become the best."""
        self._read: dict[float, Any] = {}
        """Number -> the dtype that it was read from."""
        bus.on(MetricGiven, self._metric_given)

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_local_scalar_dense",), self.read, False
        yield FORWARD, ("lt", "gt", "le", "ge"), self.compared, False

    def read(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if args[0].dtype in LOW and len(self._read) < MOST:
            self._read[float(out)] = args[0].dtype

    def compared(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """`if loss < best:` with a best from before the last backward, and too close to it for the dtype."""
        if out.ndim or not all(isinstance(a, Tensor) and a.dtype in LOW for a in args[:1]):
            return
        now = self._window.clock
        known = [self._tensors.learn(a) for a in args[:2] if isinstance(a, Tensor) and a.dtype in LOW]
        earlier = any(self._compared.get(each, now) < now for each in known)
        self._compared = {each: when for each, when in self._compared.items() if not each.expired}
        for each in known:
            self._compared.setdefault(each, now)
        if not earlier or len(known) < 2 or not self._ledger.measures:
            return
        dtype = args[0].dtype
        seen = self._ledger.once(
            (Metrics, "compared", dtype),
            Observation(
                Kind.OP,
                DTYPE_NAMES[dtype],
                Role.LOSS,
                user_site(),
                detail="compared with an earlier one, and closer to it than the dtype tells apart",
                attrs={"op": "low-precision-metric"},
                confirmed=False,
            ),
        )
        step = torch.finfo(dtype).eps
        first, second = args[0].detach().double(), args[1].detach().double()
        close = (first - second).abs() <= CLOSE * step * second.abs()
        exact = (second.abs() <= 1) & (second % EXACT == 0)

        def use(values: list[float]) -> None:
            if values[0] and not values[1]:
                seen.confirmed = True
                seen.evidence["metric_step"] = step

        self._ledger.defer([close, exact], use)

    def _metric_given(self, event: MetricGiven) -> None:
        """A threshold of 1e-4, torch's default, asks for less than a low dtype can tell."""
        metric, scheduler = event.metric, event.scheduler
        low = isinstance(metric, Tensor) and metric.dtype in LOW and metric.numel() == 1
        dtype = metric.dtype if low else self._read.get(metric) if isinstance(metric, float) else None
        value = abs(float(metric)) if dtype is not None else 0.0
        step = torch.finfo(dtype).eps / 2 if dtype is not None else 0.0
        if not 0 < value < float("inf") or (value <= 1 and value % EXACT == 0 and dtype is torch.float16):
            return
        if getattr(scheduler, "threshold_mode", "rel") == "rel" and getattr(scheduler, "threshold", 0.0) > step:
            return
        seen = self._ledger.once(
            (Metrics, dtype),
            Observation(
                Kind.OP,
                DTYPE_NAMES[dtype],
                Role.LOSS,
                user_site(),
                detail=f"{type(scheduler).__name__} looks for changes of {scheduler.threshold:g}",
                attrs={"op": "low-precision-metric"},
            ),
        )
        seen.evidence["metric_step"] = torch.finfo(dtype).eps
