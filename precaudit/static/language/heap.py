"""A journal of every write to abstract memory, so that the two sides of a branch can be run, undone and joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Key = Any
Store = dict[Any, Any]
T = TypeVar("T")


class Missing:
    """What a store held before its first write."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()

Changes = dict[tuple[int, Key], tuple[Store, Key, Any]]
"""(identity of the store, key) -> (store, key, value at the end of the path)."""


class Heap(Generic[T]):
    """Writes go through `put`; `mark`, `changes`, `undo` and `merge` work on what was written since."""

    def __init__(self, join: Callable[[Any, Any], Any]) -> None:
        self._log: list[tuple[Store, Key, Any]] = []
        self._join = join
        self._perhaps: set[tuple[int, Key]] = set()

    def put(self, store: Store, key: Key, value: Any) -> None:
        """Writes one value, remembering what stood there."""
        self._log.append((store, key, store.get(key, MISSING)))
        store[key] = value
        self._perhaps.discard((id(store), key))

    def mark(self) -> int:
        """A point in time to come back to."""
        return len(self._log)

    def changes(self, mark: int) -> Changes:
        """What differs now from the state at `mark`."""
        return {(id(store), key): (store, key, store.get(key, MISSING)) for store, key, _ in self._log[mark:]}

    def rewritten(self, mark: int) -> list[tuple[Store, Key, Any]]:
        """(store, key, value at `mark`) of what was written since."""
        found: dict[tuple[int, Key], tuple[Store, Key, Any]] = {}
        for store, key, old in self._log[mark:]:
            found.setdefault((id(store), key), (store, key, old))
        return list(found.values())

    def undo(self, mark: int) -> None:
        """Puts the state at `mark` back."""
        log = self._log
        while len(log) > mark:
            store, key, old = log.pop()
            if old is MISSING:
                store.pop(key, None)
            else:
                store[key] = old

    def forget(self) -> None:
        """Empties every store that was written to, which breaks the cycles that run through them."""
        for store, _, _ in self._log:
            store.clear()
        self._log.clear()

    def merge(self, outcomes: list[Changes]) -> None:
        """Joins the outcomes of several paths that all began in the present state."""
        first, *others = outcomes
        written = first
        for outcome in others:
            written = written | outcome
        for at, (store, key, _) in written.items():
            present = (store, key, store.get(key, MISSING))
            joined: Any = first.get(at, present)[2]
            absent = joined is MISSING
            for outcome in others:
                value = outcome.get(at, present)[2]
                absent = absent or value is MISSING
                if value is not joined:
                    joined = self._join(joined, value)
            if joined is not MISSING:
                self.put(store, key, joined)
                if absent:
                    self._perhaps.add(at)

    def perhaps(self, store: Store, key: Key) -> bool:
        """Whether only some of the paths that lead here wrote it."""
        return (id(store), key) in self._perhaps
