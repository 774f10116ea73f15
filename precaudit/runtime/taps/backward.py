"""Tells of every backward: wraps the one function of torch that all of them go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from .. import torch_private as private
from ..events import BackwardBegan, BackwardEnded, BackwardNested, BackwardRuns, Bus
from ..guard import Guard
from ..modes import Modes
from ..patching import Undo
from . import Tap
from .optimizers import StepTap


class BackwardTap(Tap):
    """A backward inside a backward (reentrant checkpointing, reversible layers) is part of the outer one."""

    def __init__(self, bus: Bus, guard: Guard, modes: Modes, steps: StepTap) -> None:
        self._bus, self._guard, self._modes, self._steps = bus, guard, modes, steps

    def install(self) -> Iterable[Undo]:
        yield private.patch_engine(self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if private.is_tracing():
                return original(t_outputs, *args, **kwargs)
            if private.graph_task_id() != -1:
                self._guard.ask("a nested backward", self._nested, t_outputs, otherwise=None)
                return original(t_outputs, *args, **kwargs)
            accumulates = bool(kwargs.get("accumulate_grad", True))
            self._guard.ask("a backward", self._begins, t_outputs, args, accumulates, otherwise=None)
            results = None
            try:
                results = original(t_outputs, *args, **kwargs)
                return results
            finally:
                self._bus.tell(BackwardEnded(accumulates, results))
                self._modes.restore()

        return _engine_run_backward

    def _nested(self, roots: Any) -> None:
        self._bus.tell(BackwardNested(_tensors(roots)))

    def _begins(self, roots: Any, args: Any, accumulates: bool) -> None:
        self._steps.give_up_failed()
        self._bus.tell(_began(roots, args, accumulates))
        self._bus.tell(BackwardRuns())


def _tensors(roots: Any) -> list[Tensor]:
    return [root for root in roots if isinstance(root, Tensor)]


def _began(roots: Any, args: Any, accumulates: bool) -> BackwardBegan:
    """The event, from what the engine is called with: roots, their gradients, whether the graph is kept, is made."""
    gradients = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return BackwardBegan(
        _tensors(roots),
        gradients[0] if gradients else None,
        bool(len(args) > 2 and args[2]),
        accumulates,
    )
