"""Who wants to hear of which operation, of updates, and of the end of a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

Act = Callable[[Any], None]
"""Is given an `events.Op`."""


class Bus:
    """Calls those who asked; what an event is (`overlays/events.py`) it need not know."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Act]] = defaultdict(list)
        self.updates: list[Callable[[Any], None]] = []
        self.ends: list[Callable[[Any], None]] = []

    def on(self, names: str | Iterable[str], act: Act, low_only: bool = True) -> None:
        """Has `act` called after each operation of these names; `low_only`: where its result is low."""
        heard = (lambda op: act(op) if op.low else None) if low_only else act
        for name in names.split() if isinstance(names, str) else names:
            self.asked[name].append(heard)

    def on_update(self, act: Callable[[Any], None]) -> None:
        """Has `act` called with an `events.Update` whenever a tensor or a parameter is written from itself."""
        self.updates.append(act)

    def on_end(self, act: Callable[[Any], None]) -> None:
        """Has `act` called with the run once the whole file has been run."""
        self.ends.append(act)

    def finish(self, run: Any) -> None:
        for act in self.ends:
            act(run)

    def tell(self, op: Any) -> None:
        for act in self.asked.get(op.name, ()):
            act(op)

    def tell_update(self, update: Any) -> None:
        for act in self.updates:
            act(update)
