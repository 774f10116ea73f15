"""Tells by what measure ReduceLROnPlateau is asked to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..events import Bus, MetricGiven
from ..patching import Undo, patch
from . import Tap


class SchedulerTap(Tap):
    """The measure is told as it was given: a tensor, or a number."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def install(self) -> Iterable[Undo]:
        yield patch(ReduceLROnPlateau, "step", self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, metrics: Any, *args: Any, **kwargs: Any) -> Any:
            self._bus.tell(MetricGiven(scheduler, metrics))
            return original(scheduler, metrics, *args, **kwargs)

        return step
