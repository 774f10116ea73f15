"""Where a run stands: the names of a block, the call and the loop in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precaudit.static.language.heap import Changes, Store
from precaudit.static.language.values import (
    Value,
)
from precaudit.static.source import Source


class OutOfBudget(Exception):
    """The file asked for more work than it is worth; what was found so far stands."""


class Scope:
    """A block's names and where it stands."""

    __slots__ = ("function", "parent", "source", "store")

    def __init__(self, store: Store, parent: Scope | None, source: Source, function: str = "") -> None:
        self.store = store
        self.parent = parent
        self.source = source
        self.function = function

    def find(self, name: str) -> Value | None:
        """What a name is bound to here or in a block around; None where the code under check does not bind it."""
        scope: Scope | None = self
        while scope is not None:
            found: Value | None = scope.store.get(name)
            if found is not None:
                return found
            scope = scope.parent
        return None

    @property
    def top(self) -> Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope


class Frame:
    """One call in progress."""

    __slots__ = ("exits", "function", "loops", "mark", "on_yield", "owner", "receiver", "yields")

    def __init__(self, function: Any, mark: int, owner: Any = None, receiver: Value | None = None) -> None:
        self.function = function
        self.mark = mark
        self.owner = owner
        self.receiver = receiver
        self.exits: list[tuple[Changes, Value]] = []
        self.loops: list[Loop] = []
        self.yields: list[Value] = []
        self.on_yield: Callable[[], None] | None = None


class Loop:
    """One loop in progress."""

    __slots__ = ("breaks", "continues", "iteration_mark", "mark", "node")

    def __init__(self, mark: int, node: Any = None) -> None:
        self.mark = mark
        self.node = node
        self.iteration_mark = mark
        self.breaks: list[Changes] = []
        self.continues: list[Changes] = []
