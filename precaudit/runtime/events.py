"""What torch tells a trace, as typed values, and the bus that carries them: it knows no rule and no role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .guard import Guard


class BackwardBegan(NamedTuple):
    """The autograd engine was called from outside of any backward; it has not run yet."""

    roots: list[Tensor]
    gradient: Any
    """What the caller passed for the first root."""
    creates_graph: bool
    """The gradients will be differentiated again."""
    accumulates: bool
    """It adds to `.grad`; `autograd.grad` returns its results instead."""


class BackwardEnded(NamedTuple):
    """The engine has run, or has raised."""

    accumulates: bool
    results: Any


class StepBegan(NamedTuple):
    """An optimizer is about to step, inside no other optimizer's step."""

    optimizer: Any


class StepEnded(NamedTuple):
    """That step was taken."""

    optimizer: Any


E = TypeVar("E")
Listener = Callable[[Any], None]


class Bus:
    """Carries events to those who asked for their kind, in the order in which they asked.

    A listener that fails is noted in the report, and the others still hear. Once the trace is over nobody does.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._listeners: dict[type, list[Listener]] = {}

    def on(self, kind: type[E], act: Callable[[E], None]) -> None:
        """Has `act` called with every event of this kind."""
        self._listeners.setdefault(kind, []).append(act)

    def tell(self, event: Any) -> None:
        """Calls all listeners of this event, unseen by any mode and outside of autograd."""
        listeners = self._listeners.get(type(event))
        if listeners is None or not self._guard.open:
            return
        with self._guard.unseen():
            for act in listeners:
                try:
                    act(event)
                except Exception as error:
                    self._guard.fault(_words(act), error)
                if not self._guard.open:  # one of them has ended the trace
                    return

    def order(self) -> dict[str, list[str]]:
        """Event -> its listeners, in the order in which they hear it."""
        return {kind.__name__: [_words(act) for act in acts] for kind, acts in self._listeners.items()}


def _words(act: Listener) -> str:
    return getattr(act, "__qualname__", repr(act))
