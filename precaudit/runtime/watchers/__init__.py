"""What a dispatched op may mean, one watcher per question; the op probe asks those that registered for the op.

A watcher's `reactions` yields (phase, op names, reaction, low_only): with low_only the reaction runs only where the
result is in low precision, which keeps a clean float32 step fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from ..process.ledger import Observation
from ..trackers.window import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER

BEFORE_WRITE = 1 + max(BACKWARD, FORWARD, GRADIENTS, OPTIMIZER)
"""Instead of a phase: before an op writes to what it is given, in any phase; there is no result yet."""
Reaction = Callable[[str, Any, Any, Any], None]
"""(op name, args, kwargs, result)."""
Registration = tuple[int, Iterable[str], Reaction, bool]


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


def find() -> list[type[Watcher]]:
    """The watchers of this folder, in the order of their files' names."""
    found = []
    for each in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        held = vars(importlib.import_module(f"{__name__}.{each}"))
        found += [one for one in held.values() if isinstance(one, type) and one.__module__ == f"{__name__}.{each}"]
    return [one for one in found if issubclass(one, Watcher)]


__all__ = [
    "BACKWARD", "BEFORE_WRITE", "FORWARD", "GRADIENTS", "OPTIMIZER", "Reaction", "Registration", "Watcher", "find",
]  # fmt: skip
