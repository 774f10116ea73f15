"""Times what an in-place op of the traced steps asks about whose memory it writes to: `running += loss` of a loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from precaudit.runtime import session as runtime
from precaudit.runtime.trackers.tensors import Tensors

QUESTIONS = ("of", "known", "is_parameter", "is_gradient", "is_input", "leaf", "learn", "meet")
"""What is asked of trackers/tensors.py."""
GOAL = 1.0
"""Microseconds for all questions of one such op."""


class Asked(NamedTuple):
    """One question, to be asked again."""

    ask: Callable[..., Any]
    about: tuple[Any, ...]


class Listening:
    """Notes the questions that come from outside of the records: one that is asked to answer another is part of it."""

    def __init__(self, tensors: Tensors) -> None:
        self.asked: list[Asked] = []
        self._inside = False
        for name in QUESTIONS:
            setattr(tensors, name, self._noting(getattr(tensors, name)))

    def _noting(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*about: Any) -> Any:
            if self._inside:
                return ask(*about)
            self.asked.append(Asked(ask, about))
            self._inside = True
            try:
                return ask(*about)
            finally:
                self._inside = False

        return noting


def measure(settings: dict[str, Any]) -> dict[str, float]:
    """How many questions `running += loss` asks in the window, and the microseconds that all of them take."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    running = torch.zeros(())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    session = runtime.start(settings)
    tensors = session.parts.get(Tensors)
    try:
        for _ in range(3):
            running += step()
        loss = step()
        listening = Listening(tensors)
        running += loss
        for name in QUESTIONS:
            delattr(tensors, name)
        return {"questions": len(listening.asked), "microseconds": round(_time(listening.asked), 2), "goal": GOAL}
    finally:
        session.remove()


def _time(asked: list[Asked], repeats: int = 2000, rounds: int = 20) -> float:
    """Microseconds of asking all of them once: the least of some rounds, less the loop's own."""

    def spent(calls: list[Asked]) -> float:
        start = time.process_time()
        for _ in range(repeats):
            for ask, about in calls:
                ask(*about)
        return time.process_time() - start

    nothing = [Asked(lambda *about: None, each.about) for each in asked]
    return (min(spent(asked) for _ in range(rounds)) - min(spent(nothing) for _ in range(rounds))) / repeats * 1e6
