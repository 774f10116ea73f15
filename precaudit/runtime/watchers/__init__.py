"""One watcher per question: what an operation or an event of the run may mean.

A watcher's `reactions` yields (phase, op names, reaction, low_only): with low_only the reaction runs only where the
result is in low precision, which keeps a clean float32 step fast.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..events import Bus, FactsAsked, FactsTold
from ..guard import Guard
from ..operations import (
    ANY,
    BACKWARD,
    BEFORE_WRITE,
    FORWARD,
    GRADIENTS,
    LOW_RESULTS,
    OPTIMIZER,
    Heard,
    Op,
    Operations,
    Reaction,
    Registration,
)
from ..parts import Parts, find
from ..process.ledger import Observation


class Watcher:
    """One question about a run. Its constructor names the parts it needs by their class, and listens to the bus.

    A file in this folder is all it takes: its watchers are found, made and asked.
    """

    def reactions(self) -> Iterable[Registration]:
        """What to do at which ops of the traced steps."""
        return ()

    def observations(self) -> Iterable[Observation]:
        """What is to be said beside the ledger's, each time that the report is written."""
        return ()

    def complete(self, told: list[Observation]) -> None:
        """Adds to what all have told, once they have: numbers, or Observations that compare others."""

    def _facts_asked(self, event: FactsAsked) -> None:
        event.told.extend(self.observations())

    def _facts_told(self, event: FactsTold) -> None:
        self.complete(event.told)


class Watchers:
    """All watchers of this folder."""

    def __init__(self, bus: Bus, guard: Guard, operations: Operations, parts: Parts) -> None:
        self._guard = guard
        operations.on(self._hear)
        made = [guard.ask(kind.__name__, parts.get, kind, otherwise=None) for kind in find(__name__, Watcher)]
        self._all = [watcher for watcher in made if watcher is not None]
        self._registered: list[tuple[int, frozenset[str], Reaction, int]] | None = None
        for watcher in self._all:
            bus.on(FactsAsked, watcher._facts_asked)
            bus.on(FactsTold, watcher._facts_told)

    def _hear(self, op: Op) -> Iterable[Heard]:
        if self._registered is None:
            self._registered = [
                (phase, frozenset(names), reaction, LOW_RESULTS if low_only else ANY)
                for watcher in self._all
                for phase, names, reaction, low_only in self._reactions(watcher)
            ]
        for phase, names, reaction, results in self._registered:
            if op.name in names:
                yield Heard(phase, reaction, results)

    def _reactions(self, watcher: Watcher) -> list[Registration]:
        return self._guard.ask(type(watcher).__name__, lambda: list(watcher.reactions()), otherwise=[])


__all__ = [
    "BACKWARD", "BEFORE_WRITE", "FORWARD", "GRADIENTS", "OPTIMIZER", "Reaction", "Registration", "Watcher", "Watchers",
]  # fmt: skip
