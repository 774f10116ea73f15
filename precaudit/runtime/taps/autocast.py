"""Tells of every autocast region that is made, entered and left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..events import AutocastEntered, AutocastLeft, AutocastMade, Bus
from ..patching import Undo, patch
from . import Tap


class AutocastTap(Tap):
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def install(self) -> Iterable[Undo]:
        autocast = torch.amp.autocast_mode.autocast
        yield patch(autocast, "__init__", self._around_init)
        yield patch(autocast, "__enter__", self._around_enter)
        yield patch(autocast, "__exit__", self._around_exit)

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(region: Any, *args: Any, **kwargs: Any) -> None:
            original(region, *args, **kwargs)
            dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
            self._bus.tell(AutocastMade(region, dtype is not None))

        return __init__

    def _around_enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __enter__(region: Any) -> Any:
            out = original(region)
            self._bus.tell(AutocastEntered(region, torch.is_grad_enabled()))
            return out

        return __enter__

    def _around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __exit__(region: Any, *args: Any) -> Any:
            self._bus.tell(AutocastLeft())
            return original(region, *args)

        return __exit__
