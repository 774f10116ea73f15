"""Which modules the exact step follows: those whose names fit, or of all of them the worst that fit into memory.

What is computed elsewhere counts as exact, as it is. Which modules are the worst is seen in a step before: there every
operation is compared with float64 on its own inputs, and nothing is kept beside the program's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from .places import PHASES, Place
from .rows import Key, Row

BYTES = 8
"""Of a companion's number."""
LINEAGES = 2
"""Companions of a number in backward and in the optimizer: those that began with the step, and with the stage."""
LASTING = 4
"""Of a parameter: itself, its gradient, and two of optimizer state."""


class Scope:
    """The modules of one step."""

    def __init__(self, globs: Iterable[str] = (), limit: int = 0) -> None:
        self.globs = tuple(globs)
        self.limit = limit
        """Bytes that companions may take; 0 where they may take any."""
        self.surveys = limit > 0
        """This step only finds out which modules are worst."""
        self.numbers: dict[str, int] = {}
        """Module -> numbers that its companions would be, at most."""
        self.chosen: frozenset[str] | None = None
        """Those that fit; None where all do."""
        self.left_out: set[str] = set()
        self._known: dict[str, bool] = {}

    @property
    def is_whole(self) -> bool:
        return not self.globs and self.chosen is None

    def has(self, module: str) -> bool:
        """Whether a module, or one that holds it, is in."""
        known = self._known.get(module)
        if known is None:
            parts = module.split(".")
            around = [".".join(parts[:at]) for at in range(1, len(parts) + 1)]
            fits = not self.globs or any(fnmatchcase(name, glob) for name in around for glob in self.globs)
            known = self._known[module] = fits and (self.chosen is None or module in self.chosen)
        return known

    def met_names(self) -> list[str]:
        """The modules that were asked about."""
        return list(self._known)

    def leaves(self, place: Place, differs: bool) -> bool:
        """Whether an operation is not followed; what belongs to no module is where it is given what differs."""
        if self.is_whole:
            return False
        if place.phase in PHASES[:2] and place.inside:
            return not self.has(place.module)
        return not differs

    def met(self, place: Place, numbers: int) -> None:
        """An operation of the step that only looks."""
        times = 1 if place.phase == PHASES[0] else LINEAGES
        self.numbers[place.module] = self.numbers.get(place.module, 0) + times * numbers

    def choose(self, rows: dict[Key, Row], parameters: dict[str, int]) -> None:
        """The survey is over: takes the worst modules as long as they fit. `parameters`: module -> its numbers."""
        worst: dict[str, float] = {}
        for key, row in rows.items():
            if key.phase in PHASES[:2] and key.module and self.has(key.module):
                worst[key.module] = max(worst.get(key.module, 0.0), row.added)
        self.surveys = False
        need = {
            name: BYTES * (self.numbers.get(name, 0) + LINEAGES * LASTING * parameters.get(name, 0)) for name in worst
        }
        if BYTES * (sum(self.numbers.values()) + LINEAGES * LASTING * sum(parameters.values())) <= self.limit:
            return
        room, chosen = self.limit, []
        for name in sorted(worst, key=lambda name: -worst[name]):
            if need[name] <= room:
                room -= need[name]
                chosen.append(name)
        self.chosen, self.left_out = frozenset(chosen), set(worst) - set(chosen)
        self._known.clear()

    def content(self) -> dict[str, Any] | None:
        """As plain values; None where everything is followed."""
        if self.is_whole:
            return None
        modules = sorted(self.chosen) if self.chosen is not None else list(self.globs)
        return {"modules": modules, "left_out": len(self.left_out), "limit": self.limit}
