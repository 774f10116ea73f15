"""Runs code on abstract values: an explicit walk over statements that keeps branches apart and joins them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import libcst as cst

from precaudit.static.language import branches, calls, classes, conditions, expressions, statements
from precaudit.static.language.branches import Split
from precaudit.static.language.conditions import Changed
from precaudit.static.language.heap import Heap, Store
from precaudit.static.language.questions import Library
from precaudit.static.language.scopes import Frame, OutOfBudget, Scope
from precaudit.static.language.values import (
    Assumed,
    Autocast,
    Class,
    Context,
    Function,
    ModuleRef,
    Paths,
    Spot,
    Value,
    join,
    unknown,
)
from precaudit.static.reach.relevance import COMMON, HOOK
from precaudit.static.reach.words import trains
from precaudit.static.source import Source

BUDGET = 30_000
"""Statements that a file's own run may take; a training script takes a few hundred."""
REST_BUDGET = 12_000
"""Statements that all functions nobody calls may take together."""
ISOLATED_BUDGET, TRAINING_BUDGET = 3_000, 9_000
"""Statements that one of them may take, and one that trains: the checkpoint stands at its end."""

GUARD = re.compile(r"version|hasattr|\btry\b|is_available|TORCH_|_GE_|_LT_|\bgte?_|getattr")
"""What the condition of a guard around an old or new API looks like."""

STATEMENTS = {**statements.STATEMENTS, **branches.STATEMENTS}


class Interpreter:
    """Executes a module, then every function that nothing called. `library` gives everything else its meaning."""

    def __init__(self, library: Library, budget: int = BUDGET) -> None:
        self.heap: Heap[Any] = Heap(join)
        self.world: Store = {"paths": Paths(frozenset({frozenset()}))}
        self.library = library
        self.frames: list[Frame] = []
        self.main: Source | None = None
        """The file that is run; the others are imported."""
        self.scope: Scope = None  # type: ignore[assignment]
        self.loops: tuple[int, ...] = ()
        self.later: frozenset[int | str] = frozenset()
        """In a later turn of a loop whose items are not known: the identities of their stores, the loop's names."""
        self.contexts: list[Value] = []
        self.budget = budget
        self.rest_budget = REST_BUDGET
        self.called: set[Any] = set()
        self.all_matters = True
        """What any call does may matter: something may be low, or be trained."""
        self.guards: list[str] = []
        self.splits: dict[Any, tuple[frozenset[Any], list[Split]]] = {}
        """By condition: the keys in it, and what was written on its two sides and is joined now."""
        self.empty: dict[Any, tuple[Any, bool]] = {}
        """By the key of a joined value: the condition it was joined under, and on which side it is None or false."""
        self._isolated_function: tuple[Source, Any] | None = None
        """The function that runs on its own, until it has asked for more than its budget."""
        self._kept: dict[int, Value | None] = {}
        self._changes: dict[Any, Changed] = {}
        self.rebuilt: frozenset[str] = frozenset()
        """Loop variables of a comprehension that replaces the list it iterates over."""
        self.find_module: Callable[[Source, str, int], ModuleRef | None] = lambda source, name, level: None
        self.find_name: Callable[[Source, str, int, str], Value | None] = lambda source, name, level, imported: None
        self.find_unread: Callable[[Source, str, int, str], Value | None] = self.find_name
        """The same, of a module that was left unread."""
        self._texts: dict[Any, str] = {}
        self.literals: dict[Any, Value] = {}
        """The values of numbers and strings, which are read once."""
        self._turns = 0

    def run_module(self, source: Source, store: Store) -> None:
        """Executes a file's top level."""
        self.main = self.main or source
        outer, self.scope = self.scope, Scope(store, None, source)
        frame = Frame(None, self.heap.mark())
        self.frames.append(frame)
        try:
            self.block(source.tree.body)
        finally:
            self.frames.pop()
            self.scope = outer

    def run_rest(self, source: Source, store: Store) -> None:
        """Calls each function and method that nothing called, with arguments about which nothing is known."""
        outer, self.scope = self.scope, Scope(store, None, source)
        relevant = source.relevant
        try:
            for value in list(store.values()):
                self.all_matters = source.live is None
                self._run_uncalled(value, source, relevant)
        finally:
            self.scope = outer
            self.all_matters = True

    def _run_uncalled(self, value: Any, source: Source, relevant: set[str]) -> None:
        if isinstance(value, Function) and value.scope.source is source and value.node not in self.called:
            if not isinstance(value.node, cst.Lambda) and value.node.name.value in relevant:
                self._isolated(lambda: calls.call_function(self, value, [], {}, value.node), (source, value.node))
        elif isinstance(value, Class) and value.scope.source is source and value.name in relevant:
            members = [m for m in value.store.values() if isinstance(m, Function) and m.node not in self.called]
            named = [m for m in members if isinstance(m.node, cst.FunctionDef)]
            asked = (
                relevant | COMMON | {name for name in value.store if isinstance(name, str) and name.startswith(HOOK)}
            )
            methods = [m for m in named if m.node.name.value in asked]
            if methods:
                self._isolated(lambda: self._run_methods(value, methods))

    def _run_methods(self, cls: Class, methods: list[Function]) -> None:
        receiver = calls.call_class(self, cls, [], {}, cls.node)
        constructed = self.all_matters
        for method in methods:
            self.all_matters = constructed
            if method.node not in self.called:
                bound = classes.bind(method, receiver, cls)
                given = self.library.hook_arguments(cls, method.node.name.value)
                self._isolated(partial(calls.call, self, bound, [], given, method.node))

    def _isolated(self, run: Callable[[], Any], function: tuple[Source, Any] | None = None) -> None:
        paths, contexts, loops = self.world["paths"], self.contexts, self.loops
        self.world["paths"] = Paths(frozenset({frozenset()}))
        self.contexts, self.loops = [], ()
        outer, self.budget = self.budget, min(ISOLATED_BUDGET, self.rest_budget)
        self._isolated_function = function
        given = self.budget
        depth, scope = len(self.frames), self.scope
        try:
            run()
        except (OutOfBudget, RecursionError):
            del self.frames[depth:]
            self.scope = scope
        finally:
            self.rest_budget -= given - max(self.budget, 0)
            self.budget = outer
            self.world["paths"] = paths
            self.contexts, self.loops = contexts, loops

    def matters(self, function: Function) -> bool:
        """Whether a call has to be followed; once one has led to where something low can begin, all have."""
        if self.all_matters:
            return True
        name, owner, source = function.node.name.value, function.owner, function.scope.source
        path = name if owner is None else f"{owner.name}.{name}"
        live = source.live
        self.all_matters = live is None or path in live or (owner is not None and owner.name in live)
        leads = owner.name if owner is not None and name in COMMON else name
        return self.all_matters or name == "__init__" or leads in source.relevant

    def reset(self) -> None:
        """Leaves every call and region that an interruption left open."""
        self.frames, self.contexts, self.loops, self.guards = [], [], (), []

    def forget(self) -> None:
        """Lets go of everything, so that the trees are freed now and not by a collection of garbage."""
        self.heap.forget()
        conditions.forget()
        self.__dict__.clear()

    def spot(self, node: Any) -> Spot:
        return Spot(self.scope.source, node, self.scope.function)

    def keep(self, value: Value | None) -> None:
        """Keeps a value that a condition names by identity."""
        self._kept[id(value)] = value

    def changed_by(self, loop: Any) -> Changed:
        """The names that a turn of a loop may change."""
        found = self._changes.get(loop)
        if found is None:
            text = self.scope.source.code(loop) if isinstance(loop, (cst.For, cst.While)) else ""
            found = self._changes[loop] = conditions.changes(text)
        return found

    def each_turn(self, state: conditions.State) -> bool:
        """Whether a path takes the same way in each turn of the innermost loop."""
        loop = next((frame.loops[-1].node for frame in reversed(self.frames) if frame.loops), None)
        events = [event for event in state if type(event) is Assumed and event.kind == "assume"]
        return all(loop is not None and conditions.lasts(event.atom, self.changed_by(loop)) for event in events)

    def text(self, node: Any) -> str:
        found = self._texts.get(node)
        if found is None:
            found = self._texts[node] = statements.plain(node) or self.scope.source.code(node)
        return found

    def autocast(self) -> Autocast | None:
        """The innermost autocast region."""
        for context in reversed(self.contexts):
            if isinstance(context, Autocast):
                return context
        return None

    def grad_enabled(self) -> bool:
        for context in reversed(self.contexts):
            if isinstance(context, Context):
                if context.kind == "no_grad":
                    return False
                if context.kind == "enable_grad":
                    return True
        return True

    def guarded(self) -> bool:
        """Whether a version check, a feature test or an exception handler stands around this place."""
        return any(GUARD.search(text) for text in self.guards)

    def inside(self, name: str) -> bool:
        """Whether a method of this name is being run."""
        return any(f.function is not None and f.function.name.value == name for f in self.frames if f.function)

    @property
    def paths(self) -> frozenset[frozenset[Any]]:
        found: Paths = self.world["paths"]
        return found.states

    def set_paths(self, states: Iterable[frozenset[Any]]) -> None:
        self.heap.put(self.world, "paths", Paths(frozenset(states)))

    def block(self, statements: Sequence[Any]) -> bool:
        """Runs statements in order; False when the path ends inside (return, raise, break, continue)."""
        return all(map(self.statement, statements))

    def spend(self, statements: int) -> None:
        """Takes this from the budget. Raises OutOfBudget."""
        self.budget -= statements
        if self.budget < 0:
            self.budget += self._more()
        if self.budget < 0:
            raise OutOfBudget

    def _more(self) -> int:
        """What a function gets on top of its budget, once, where it trains."""
        function, self._isolated_function = self._isolated_function, None
        if function is None or not trains(function[0].code(function[1]).encode("utf-8", "replace")):
            return 0
        more = max(min(TRAINING_BUDGET, self.rest_budget) - ISOLATED_BUDGET, 0)
        self.rest_budget -= more
        return more

    def statement(self, node: Any) -> bool:
        self.spend(1)
        handler = STATEMENTS.get(type(node))
        return handler is None or handler(self, node) is not False

    def body(self, suite: Any) -> bool:
        return self.block(suite.body)

    def eval(self, node: Any) -> Value:
        """The abstract value of an expression, with its effects."""
        handler = expressions.EXPRESSIONS.get(type(node))
        if handler is None:
            return unknown()
        found: Value = handler(self, node)
        return found
