"""PA416: a low-precision measure of how training goes decides on the learning rate.

Known limitations: a Python number is known to come from a low tensor where that was read in the traced steps; what a
script compares by itself, as early stopping does, is not seen.
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
from . import Registration, Watcher

MOST = 1_000
"""Numbers that are remembered."""
EXACT = 1 / 1024
"""Multiples of this that are not larger than 1 are shares of right answers, exact in any dtype."""


class Metrics(Watcher):
    """Remembers the numbers that were read from low tensors."""

    def __init__(self, bus: Bus, ledger: Ledger) -> None:
        self._ledger = ledger
        self._read: dict[float, Any] = {}
        """Number -> the dtype that it was read from."""
        bus.on(MetricGiven, self._metric_given)

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_local_scalar_dense",), self.read, False

    def read(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if args[0].dtype in LOW and len(self._read) < MOST:
            self._read[float(out)] = args[0].dtype

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
