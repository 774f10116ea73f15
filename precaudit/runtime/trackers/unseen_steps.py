"""Finds optimizer steps that call no hook: compiled ones, and those of optimizers that live in backward (LOMO)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from .. import torch_private as private
from ..events import Bus, CompileCalled, StepEnded
from ..guard import Guard
from ..operations import OPTIMIZER
from .optimizers import parameters
from .window import Window

FEW = 4
"""Elements of each of so many parameters that are compared."""


class UnseenSteps:
    """Asked at each backward until a step has been seen; where one may be compiled or once went unseen, later too."""

    def __init__(self, bus: Bus, window: Window, guard: Guard) -> None:
        self._window, self._guard = window, guard
        self.silent: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call no hook."""
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call the hooks."""
        self._prints: weakref.WeakKeyDictionary[Any, list[float]] = weakref.WeakKeyDictionary()
        self._compiles = False
        bus.on(CompileCalled, self._compile_called, always=True)
        bus.on(StepEnded, lambda event: self._seen.add(event.optimizer), always=True)

    def _compile_called(self, event: CompileCalled) -> None:
        self._compiles = True

    def found(self, built: Iterable[Any]) -> list[Any]:
        """The optimizers among these whose parameters changed since the last call though no step of theirs was seen."""
        changed: list[Any] = []
        if self._window.phase == OPTIMIZER:  # a closure's backward, inside a step that was seen
            return changed
        for optimizer in list(built):
            goes_unseen = self._compiles or optimizer in self.silent
            if optimizer in self._seen or (self._window.attempts and not goes_unseen):
                continue
            with self._guard.unseen():
                now = _print(optimizer)
            before = self._prints.get(optimizer)
            self._prints[optimizer] = now
            if before is not None and before != now:
                changed.append(optimizer)
                self.silent.add(optimizer)
        return changed


def _print(optimizer: Any) -> list[float]:
    """A few elements of a few parameters: enough to tell whether a step was taken."""
    trained = [private.local(p) for p in parameters(optimizer) if p.requires_grad]
    plain = [p for p in trained if type(p) in private.PLAIN and p.numel() and p.device.type != "meta"]
    chosen = [p for p in plain[:: max(1, len(plain) // FEW)][:FEW] if p.untyped_storage().nbytes()]
    parts = [p.detach().reshape(-1)[:FEW].double() for p in chosen if not p.is_complex()]
    return torch.cat(parts).tolist() if parts and len({part.device for part in parts}) == 1 else []
