"""Runs code on abstract values: an explicit walk over LibCST statements that keeps branches apart and joins them."""

from __future__ import annotations

import builtins
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import libcst as cst

from precaudit.static.heap import MISSING, Changes, Heap, Store
from precaudit.static.relevance import COMMON, relevant_names
from precaudit.static.source import Source
from precaudit.static.values import (
    ANY,
    FALSE,
    NONE,
    TRUE,
    Autocast,
    Bound,
    Choice,
    Class,
    Const,
    Context,
    Dict,
    DType,
    Function,
    Instance,
    ModuleRef,
    Number,
    Opaque,
    Paths,
    Ref,
    Seq,
    Spot,
    Super,
    Tensor,
    Value,
    choice,
    constant,
    join,
    options,
    seq,
    truth,
    unknown,
)

REST_BUDGET = 40_000
"""Statements that all such functions of one file may take together."""
MAX_DEPTH = 24
MAX_SAME = 6
ISOLATED_BUDGET = 6_000
"""Statements that a function nobody calls may take."""
MAX_CONCRETE = 32
"""A loop over at most this many known items is run item by item; any other body is run twice."""


GUARD = re.compile(r"version|hasattr|\btry\b|is_available|TORCH_|_GE_|_LT_|\bgte?_|getattr")
"""What the condition of a guard around an old or new API looks like."""


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

    __slots__ = ("breaks", "continues", "iteration_mark", "mark")

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.iteration_mark = mark
        self.breaks: list[Changes] = []
        self.continues: list[Changes] = []


class Interpreter:
    """Executes a module, then every function that nothing called. `torch` gives library calls their meaning."""

    def __init__(self, torch: Any, budget: int = 60_000) -> None:
        self.heap: Heap[Any] = Heap(join)
        self.world: Store = {"paths": Paths(frozenset({frozenset()}))}
        self.torch = torch
        self.frames: list[Frame] = []
        self.scope: Scope = None  # type: ignore[assignment]
        self.loops: tuple[int, ...] = ()
        self.contexts: list[Value] = []
        self.budget = budget
        self.rest_budget = REST_BUDGET
        self.called: set[Any] = set()
        self.guards: list[str] = []
        self.rebuilt: frozenset[str] = frozenset()
        """Loop variables of a comprehension that replaces the list it iterates over."""
        self.find_module: Callable[[Source, str, int], ModuleRef | None] = lambda source, name, level: None
        self._texts: dict[Any, str] = {}
        self._constants: dict[Any, Const] = {}
        self._loop_ids = 0

    # ---- running files

    def run_module(self, source: Source, store: Store) -> None:
        """Executes a file's top level."""
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
        relevant = relevant_names(source.text)
        try:
            for value in list(store.values()):
                self._run_uncalled(value, source, relevant)
        finally:
            self.scope = outer

    def _run_uncalled(self, value: Any, source: Source, relevant: set[str]) -> None:
        if isinstance(value, Function) and value.scope.source is source and value.node not in self.called:
            if not isinstance(value.node, cst.Lambda) and value.node.name.value in relevant:
                self._isolated(lambda: self.call_function(value, [], {}, value.node))
        elif isinstance(value, Class) and value.scope.source is source and value.name in relevant:
            members = [m for m in value.store.values() if isinstance(m, Function) and m.node not in self.called]
            methods = [m for m in members if m.node.name.value in relevant or m.node.name.value in COMMON]
            if methods:
                self._isolated(lambda: self._run_methods(value, methods))

    def _run_methods(self, cls: Class, methods: list[Function]) -> None:
        receiver = self.call_class(cls, [], {}, cls.node)
        for method in methods:
            if method.node not in self.called:
                bound = self.bind(method, receiver, cls)
                self._isolated(partial(self.call, bound, [], {}, method.node))

    def _isolated(self, run: Callable[[], Any]) -> None:
        paths, contexts, loops = self.world["paths"], self.contexts, self.loops
        self.world["paths"] = Paths(frozenset({frozenset()}))
        self.contexts, self.loops = [], ()
        budget, self.budget = self.budget, min(ISOLATED_BUDGET, self.rest_budget)
        given = self.budget
        depth, scope = len(self.frames), self.scope
        try:
            run()
        except (OutOfBudget, RecursionError):
            del self.frames[depth:]
            self.scope = scope
        finally:
            self.rest_budget -= given - max(self.budget, 0)
            self.budget = budget
            self.world["paths"] = paths
            self.contexts, self.loops = contexts, loops

    def reset(self) -> None:
        """Leaves every call and region that an interruption left open."""
        self.frames, self.contexts, self.loops, self.guards = [], [], (), []

    # ---- where we are

    def spot(self, node: Any) -> Spot:
        return Spot(self.scope.source, node, self.scope.function)

    def text(self, node: Any) -> str:
        found = self._texts.get(node)
        if found is None:
            found = self._texts[node] = self.scope.source.tree.code_for_node(node).strip()
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

    # ---- event histories

    @property
    def paths(self) -> frozenset[frozenset[Any]]:
        found: Paths = self.world["paths"]
        return found.states

    def set_paths(self, states: Iterable[frozenset[Any]]) -> None:
        self.heap.put(self.world, "paths", Paths(frozenset(states)))

    # ---- statements

    def block(self, statements: Sequence[Any]) -> bool:
        """Runs statements in order; False when the path ends inside (return, raise, break, continue)."""
        return all(self.statement(statement) for statement in statements)

    def statement(self, node: Any) -> bool:
        self.budget -= 1
        if self.budget < 0:
            raise OutOfBudget
        handler = STATEMENTS.get(type(node))
        if handler is None:
            return True
        result = handler(self, node)
        return result is not False

    def _simple_line(self, node: Any) -> bool:
        return all(self.statement(small) for small in node.body)

    def _body(self, suite: Any) -> bool:
        return self.block(suite.body)

    def _expr(self, node: cst.Expr) -> None:
        self.eval(node.value)

    def _assign(self, node: cst.Assign) -> None:
        self._rebuilding(node)
        value = self.eval(node.value)
        self.rebuilt = frozenset()
        if len(node.targets) == 1:
            value = self.torch.rebinding(node.targets[0].target, node.value, value)
        for target in node.targets:
            self.assign(target.target, value)

    def _rebuilding(self, node: cst.Assign) -> None:
        """`xs = [f(x) for x in xs]`: its loop variables stand for what the new list replaces."""
        made = node.value
        target = node.targets[0].target
        if not isinstance(made, (cst.ListComp, cst.DictComp)) or not isinstance(target, (cst.Name, cst.Attribute)):
            return
        if self.text(target) in self.text(made.for_in.iter):
            self.rebuilt = frozenset(re.findall(r"\w+", self.text(made.for_in.target)))

    def _ann_assign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value))
        elif isinstance(node.target, cst.Name):
            self.scope.store.setdefault("\0annotations", {})[node.target.value] = node.annotation.annotation

    def _aug_assign(self, node: cst.AugAssign) -> None:
        target = self.eval(node.target)
        value = self.eval(node.value)
        op = type(node.operator).__name__.removesuffix("Assign")
        result = self.torch.augmented(op, target, value, node)
        self.assign(node.target, result)

    def assign(self, target: Any, value: Value) -> None:
        """Binds a value to a name, attribute, subscript or pattern of those."""
        if isinstance(target, cst.Name):
            store = self.scope.store
            if target.value in store.get("\0globals", ()):
                store = self.scope.top.store
            self.heap.put(store, target.value, value)
        elif isinstance(target, cst.Attribute):
            self.set_attribute(self.eval(target.value), target.attr.value, value, target)
        elif isinstance(target, cst.Subscript):
            self.set_item(self.eval(target.value), self._index(target), value, target)
        elif isinstance(target, (cst.Tuple, cst.List)):
            self._unpack([e.value for e in target.elements], target.elements, value)
        elif isinstance(target, cst.StarredElement):
            self.assign(target.value, value)

    def _unpack(self, targets: list[Any], elements: Sequence[Any], value: Value) -> None:
        starred = [i for i, e in enumerate(elements) if isinstance(e, cst.StarredElement)]
        if isinstance(value, Seq) and not value.open and not starred and len(value.items) == len(targets):
            for target, item in zip(targets, value.items, strict=True):
                self.assign(target, item)
            return
        if isinstance(value, Choice):
            rows = [o for o in value.options if isinstance(o, Seq) and len(o.items) == len(targets) and not o.open]
            if len(rows) == len(value.options):
                for number, target in enumerate(targets):
                    self.assign(target, choice(row.items[number] for row in rows))
                return
        item = self.element(value)
        for number, target in enumerate(targets):
            if isinstance(value, Seq) and not value.open and starred and number < starred[0]:
                self.assign(target, value.items[number] if number < len(value.items) else unknown())
            elif number in starred:
                self.assign(target, seq([item], open=True))
            else:
                self.assign(target, item)

    def _if(self, node: Any) -> bool:
        test = self.eval(node.test)
        known = truth(test)
        if self._is_main_guard(node.test):
            known = True
        if known is True:
            return self._body(node.body)
        if known is False:
            return self._else(node)
        text = self._condition_text(node.test)
        self.guards.append(text)
        try:
            return self.fork(node.test, lambda: self._body(node.body), lambda: self._else(node), text)
        finally:
            self.guards.pop()

    def _else(self, node: Any) -> bool:
        if node.orelse is None:
            return True
        if isinstance(node.orelse, cst.If):
            return self.statement(node.orelse)
        return self._body(node.orelse.body)

    def _is_main_guard(self, test: Any) -> bool:
        return isinstance(test, cst.Comparison) and isinstance(test.left, cst.Name) and test.left.value == "__name__"

    def _condition_text(self, test: Any) -> str:
        while isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            test = test.expression
        text = self.text(test)
        return text.removesuffix(" is not None").removesuffix(" is None").removeprefix("(").removesuffix(")")

    def _negated(self, test: Any) -> bool:
        negated = False
        while isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            test, negated = test.expression, not negated
        return negated != (isinstance(test, cst.Comparison) and self.text(test).endswith(" is None"))

    def fork(self, test: Any, then: Callable[[], bool], orelse: Callable[[], bool], text: str = "") -> bool:
        """Runs both sides of an undecided branch from the same state, and joins what is left of them."""
        outcomes: list[Changes] = []
        mark = self.heap.mark()
        before = self.paths
        taken = not self._negated(test) if text else True
        for side, run in ((True, then), (False, orelse)):
            if text:
                wanted = side == taken
                possible = [s for s in before if ("assume", text, not wanted) not in s]
                if not possible:
                    continue
                self.set_paths(s | {("assume", text, wanted)} for s in possible)
            self._refine(test, side)
            if run():
                outcomes.append(self.heap.changes(mark))
            self.heap.undo(mark)
        if not outcomes:
            return False
        self.heap.merge(outcomes)
        return True

    def _refine(self, test: Any, side: bool) -> None:
        """Narrows `x` inside `if x`, `if x is not None`, `if isinstance(x, T)` when x is one of several values."""
        if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            self._refine(test.expression, not side)
            return
        if isinstance(test, cst.BooleanOperation):
            if isinstance(test.operator, cst.And) == side:
                self._refine(test.left, side)
                self._refine(test.right, side)
            return
        subject, keep = self._subject(test)
        if subject is None:
            return
        value = self.eval(subject)
        if isinstance(value, Choice):
            kept = [option for option in value.options if keep(option) in (side, None)]
            if kept and len(kept) < len(value.options):
                self.assign(subject, choice(kept))

    def _subject(self, test: Any) -> tuple[Any, Callable[[Value], bool | None]]:
        simple = (cst.Name, cst.Attribute)
        if isinstance(test, simple):
            return test, truth
        if isinstance(test, cst.Comparison) and len(test.comparisons) == 1 and isinstance(test.left, simple):
            part = test.comparisons[0]
            right = part.comparator
            if isinstance(right, cst.Name) and right.value == "None":
                wanted = isinstance(part.operator, (cst.Is, cst.Equal))
                return test.left, lambda v: (isinstance(v, Const) and v.value is None) == wanted
            if isinstance(part.operator, (cst.Equal, cst.NotEqual)):
                other = constant(self.eval(right))
                wanted = isinstance(part.operator, cst.Equal)
                return test.left, lambda v: (v.value == other) == wanted if isinstance(v, Const) else None
        return None, truth

    def _for(self, node: cst.For) -> bool:
        iterable = self.eval(node.iter)
        items = self.concrete(iterable)
        if items is None:
            item = self.element(iterable)
            return self.loop(node, lambda number: self.assign(node.target, item), 2)
        if not items:
            return self._else(node)
        return self.loop(node, lambda number: self.assign(node.target, items[number]), len(items), items)

    def _while(self, node: cst.While) -> bool:
        if truth(self.eval(node.test)) is False:
            return True
        return self.loop(node, lambda number: None, 2)

    def loop(self, node: Any, begin: Callable[[int], None], count: int, items: list[Value] | None = None) -> bool:
        """Runs a loop body `count` times, joining what `continue` and `break` leave behind."""
        frame = self.frames[-1]
        loop = Loop(self.heap.mark())
        frame.loops.append(loop)
        self._loop_ids += 1
        outer, self.loops = self.loops, (*self.loops, self._loop_ids)
        single = items is not None and len(items) == 1
        if single:
            self.loops = outer
        alive = True
        try:
            for number in range(count):
                loop.iteration_mark = self.heap.mark()
                loop.continues = []
                self._forget_assumptions()
                begin(number)
                alive = self._body(node.body)
                if loop.continues:
                    outcomes = list(loop.continues)
                    if alive:
                        outcomes.append(self.heap.changes(loop.iteration_mark))
                    self.heap.undo(loop.iteration_mark)
                    self.heap.merge(outcomes)
                    alive = True
                if not alive:
                    break
            self._forget_assumptions()
        finally:
            self.loops = outer
            frame.loops.pop()
        if loop.breaks:
            outcomes = list(loop.breaks)
            if alive:
                outcomes.append(self.heap.changes(loop.mark))
            self.heap.undo(loop.mark)
            self.heap.merge(outcomes)
        elif not alive and isinstance(node, (cst.For, cst.While)):
            # A body that always returns or raises: what follows the loop is still run, as after no iteration.
            self.heap.undo(loop.mark)
        return True

    def _forget_assumptions(self) -> None:
        states = self.paths
        kept = {frozenset(e for e in state if e[0] != "assume") for state in states}
        if kept != states:
            self.set_paths(kept)

    def _break(self, node: Any) -> bool:
        loops = self.frames[-1].loops
        if loops:
            loops[-1].breaks.append(self.heap.changes(loops[-1].mark))
        return False

    def _continue(self, node: Any) -> bool:
        loops = self.frames[-1].loops
        if loops:
            loops[-1].continues.append(self.heap.changes(loops[-1].iteration_mark))
        return False

    def _return(self, node: cst.Return) -> bool:
        value = self.eval(node.value) if node.value is not None else NONE
        frame = self.frames[-1]
        frame.exits.append((self.heap.changes(frame.mark), value))
        return False

    def _raise(self, node: cst.Raise) -> bool:
        if node.exc is not None:
            self.eval(node.exc)
        return False

    def _with(self, node: cst.With) -> bool:
        depth = len(self.contexts)
        bodies: list[Value] = []
        for item in node.items:
            value = self.eval(item.item)
            context, bound = self.torch.enter(value, item.item)
            if isinstance(context, Function):
                bodies.append(context)
            elif context is not None:
                self.contexts.append(context)
            if item.asname is not None:
                self.assign(item.asname.name, bound)
        try:
            if bodies:
                return self._with_generator(bodies, node)
            return self._body(node.body)
        finally:
            del self.contexts[depth:]

    def _with_generator(self, bodies: list[Value], node: cst.With) -> bool:
        """Runs the body at the `yield` of a function decorated with contextmanager."""
        alive = [True]
        scope, frames = self.scope, self.frames
        rest = bodies[1:]

        def body() -> None:
            inner_scope, inner_frames = self.scope, self.frames
            self.scope, self.frames = scope, frames
            try:
                alive[0] = self._with_generator(rest, node) if rest else self._body(node.body)
            finally:
                self.scope, self.frames = inner_scope, inner_frames

        first = bodies[0]
        assert isinstance(first, Function)
        arguments, keywords = first.defaults.get("\0args"), first.defaults.get("\0kwargs")
        args = list(arguments.items) if isinstance(arguments, Seq) else []
        kwargs = dict(keywords.store) if isinstance(keywords, Dict) else {}
        self.frames = list(frames)
        try:
            self.call_function(first, args, kwargs, node, on_yield=body)
        finally:
            self.frames = frames
        return alive[0]

    def _try(self, node: Any) -> bool:
        mark = self.heap.mark()
        self.guards.append("try" if node.handlers else "")
        try:
            return self._try_blocks(node, mark)
        finally:
            self.guards.pop()

    def _try_blocks(self, node: Any, mark: int) -> bool:
        alive = self._body(node.body)
        outcomes: list[Changes] = []
        if alive and node.orelse is not None:
            alive = self._body(node.orelse.body)
        if node.handlers:
            if alive:
                outcomes.append(self.heap.changes(mark))
            before_handlers = self.heap.changes(mark)
            for handler in node.handlers:
                self.heap.undo(mark)
                self.heap.merge([before_handlers])
                if handler.name is not None:
                    self.assign(handler.name.name, unknown())
                if self._body(handler.body):
                    outcomes.append(self.heap.changes(mark))
            self.heap.undo(mark)
            alive = bool(outcomes)
            if outcomes:
                self.heap.merge(outcomes)
        if node.finalbody is not None:
            alive = self._body(node.finalbody.body) and alive
        return alive

    def _function_def(self, node: cst.FunctionDef) -> None:
        decorators = tuple(self.eval(d.decorator) for d in node.decorators)
        value: Value = Function(node, self.scope, self._defaults(node.params), None, None, decorators)
        self.heap.put(self.scope.store, node.name.value, value)

    def _defaults(self, params: cst.Parameters) -> dict[str, Value]:
        found = {}
        for param in (*params.posonly_params, *params.params, *params.kwonly_params):
            if param.default is not None:
                found[param.name.value] = self.eval(param.default)
        return found

    def _class_def(self, node: cst.ClassDef) -> None:
        bases = tuple(self.eval(arg.value) for arg in node.bases)
        decorators = tuple(self.eval(d.decorator) for d in node.decorators)
        store: Store = {}
        outer = self.scope
        name = node.name.value
        qualified = f"{outer.function}.{name}" if outer.function else name
        self.scope = Scope(store, outer, outer.source, qualified)
        try:
            self.block(node.body.body)
        finally:
            self.scope = outer
        self.heap.put(outer.store, name, Class(node, outer, bases, store, name, decorators))

    def _import(self, node: cst.Import) -> None:
        for alias in node.names:
            name = dotted(alias.name)
            if alias.asname is not None:
                self.assign(alias.asname.name, self._module(name, 0))
            else:
                first = name.split(".")[0]
                if not isinstance(self.scope.store.get(first), ModuleRef):
                    self.heap.put(self.scope.store, first, self._module(first, 0))

    def _import_from(self, node: cst.ImportFrom) -> None:
        name = dotted(node.module) if node.module is not None else ""
        level = len(node.relative)
        if isinstance(node.names, cst.ImportStar):
            found = self.find_module(self.scope.source, name, level)
            if found is not None:
                for key, value in found.store.items():
                    if not key.startswith("_"):
                        self.heap.put(self.scope.store, key, value)
            return
        module = self._module(name, level)
        for alias in node.names:
            imported = dotted(alias.name)
            value = self.get_attribute(module, imported, alias)
            if isinstance(value, Opaque) and level:
                value = self._module(f"{name}.{imported}" if name else imported, level)
            bound = alias.asname.name if alias.asname is not None else alias.name
            if isinstance(bound, cst.Name):
                self.heap.put(self.scope.store, bound.value, value)

    def _module(self, name: str, level: int) -> Value:
        found = self.find_module(self.scope.source, name, level)
        if found is not None:
            return found
        return Ref(name) if not level else unknown()

    def _global(self, node: Any) -> None:
        names = self.scope.store.setdefault("\0globals", set())
        names.update(item.name.value for item in node.names)

    def _delete(self, node: cst.Del) -> None:
        return None

    def _match(self, node: Any) -> bool:
        self.eval(node.subject)
        mark = self.heap.mark()
        outcomes = [self.heap.changes(mark)]
        for case in node.cases:
            if self._body(case.body):
                outcomes.append(self.heap.changes(mark))
            self.heap.undo(mark)
        self.heap.merge(outcomes)
        return True

    def _assert(self, node: cst.Assert) -> None:
        self.eval(node.test)

    # ---- calls

    def call(self, function: Value, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """What a call returns, with its effects."""
        if isinstance(function, Choice):
            return choice(self.call(option, args, kwargs, node) for option in function.options)
        if isinstance(function, Function):
            return self.call_function(function, args, kwargs, node)
        if isinstance(function, Class):
            return self.call_class(function, args, kwargs, node)
        if isinstance(function, Instance) and isinstance(function.cls, Class):
            return self.call_instance(function, args, kwargs, node)
        result: Value = self.torch.call(function, args, kwargs, node)
        return result

    def call_instance(self, target: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        for name in ("__call__", "forward"):
            method = self.find_method(target.cls, name)
            if method is not None:
                return self.call(self.bind(method[0], target, method[1]), args, kwargs, node)
        found: Value = self.torch.call_unknown_module(target, args, kwargs, node)
        return found

    def call_class(self, cls: Class, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if self.torch.is_autograd_function(cls):
            return unknown()
        instance = Instance(cls)
        init = self.find_method(cls, "__init__")
        if init is not None:
            self.call(self.bind(init[0], instance, init[1]), args, kwargs, node)
        elif cls.decorators or self.library_bases(cls):
            self._fields(cls, instance, args, kwargs)
            self.torch.init_library_base(instance, args, kwargs, node)
        post = self.find_method(cls, "__post_init__")
        if post is not None:
            self.call(self.bind(post[0], instance, post[1]), [], {}, node)
        return instance

    def _fields(self, cls: Class, instance: Instance, args: list[Value], kwargs: dict[str, Value]) -> None:
        """A dataclass's generated __init__."""
        names = [key for key in cls.store if isinstance(key, str) and not key.startswith("\0")]
        annotated = list(cls.store.get("\0annotations", {}))
        ordered = [n for n in (*annotated, *names) if not isinstance(cls.store.get(n), Function)]
        for name, value in zip(ordered, args, strict=False):
            self.heap.put(instance.store, name, value)
        for name, value in kwargs.items():
            self.heap.put(instance.store, name, value)

    def find_method(self, cls: Value, name: str) -> tuple[Function, Class] | None:
        """The first definition of a method along the base classes, and the class that defines it."""
        for owner in self.mro(cls):
            found = owner.store.get(name)
            if isinstance(found, Function):
                return found, owner
        return None

    def mro(self, cls: Value, depth: int = 0) -> list[Class]:
        if not isinstance(cls, Class) or depth > 8:
            return []
        order = [cls]
        for base in cls.bases:
            order += [c for c in self.mro(base, depth + 1) if c not in order]
        return order

    def library_bases(self, cls: Value) -> list[str]:
        """The imported classes it derives from."""
        if isinstance(cls, Ref):
            return [cls.name]
        return [base.name for owner in self.mro(cls) for base in owner.bases if isinstance(base, Ref)]

    def bind(self, function: Function, receiver: Value, owner: Class) -> Value:
        kinds = {d.name for d in function.decorators if isinstance(d, Ref)}
        if "builtins.staticmethod" in kinds:
            return Function(function.node, function.scope, function.defaults, owner, None, function.decorators)
        if "builtins.classmethod" in kinds and isinstance(receiver, Instance):
            receiver = receiver.cls
        return Function(function.node, function.scope, function.defaults, owner, receiver, function.decorators)

    def call_function(
        self,
        function: Function,
        args: list[Value],
        kwargs: dict[str, Value],
        node: Any,
        on_yield: Callable[[], None] | None = None,
    ) -> Value:
        """Runs a function's body with these arguments and joins what its paths return."""
        definition = function.node
        if isinstance(definition, cst.Lambda):
            return self._call_lambda(function, args, kwargs)
        self.called.add(definition)
        context = self.torch.function_context(function)
        if context == "contextmanager" and on_yield is None:
            held = dict(function.defaults)
            held["\0args"], held["\0kwargs"] = seq(args), Dict(dict(kwargs))
            return Function(
                definition, function.scope, held, function.owner, function.receiver, function.decorators, "manager"
            )
        same = sum(frame.function is definition for frame in self.frames)
        if len(self.frames) >= MAX_DEPTH or same >= MAX_SAME:
            return unknown()
        name = definition.name.value
        owner = function.owner.name + "." if function.owner is not None else ""
        prefix = function.scope.function
        qualified = f"{prefix}.{name}" if prefix and not owner else owner + name
        store: Store = {}
        outer = self.scope
        self.scope = Scope(store, function.scope, function.scope.source, qualified)
        if isinstance(definition.returns, cst.Annotation):
            store["\0returns"] = definition.returns
        self._bind_arguments(function, args, kwargs, store, bool(node is definition))
        frame = Frame(definition, self.heap.mark(), function.owner, function.receiver)
        frame.on_yield = on_yield
        self.frames.append(frame)
        depth = len(self.contexts)
        if isinstance(context, Value):
            self.contexts.append(context)
        try:
            alive = self.block(definition.body.body)
            return self._leave(frame, alive)
        finally:
            del self.contexts[depth:]
            self.frames.pop()
            self.scope = outer

    def _leave(self, frame: Frame, alive: bool) -> Value:
        exits = frame.exits
        if alive:
            exits.append((self.heap.changes(frame.mark), NONE))
        if not exits:
            return unknown()
        if len(exits) > 1 or not alive:
            self.heap.undo(frame.mark)
            self.heap.merge([changes for changes, _ in exits])
        if frame.yields:
            return seq([_join_all(frame.yields)], "iterator", open=True)
        return _join_all([value for _, value in exits])

    def _call_lambda(self, function: Function, args: list[Value], kwargs: dict[str, Value]) -> Value:
        store: Store = {}
        outer = self.scope
        if len(self.frames) >= MAX_DEPTH or self.budget < 0:
            return unknown()
        self.budget -= 1
        self.scope = Scope(store, function.scope, function.scope.source, function.scope.function)
        self._bind_arguments(function, args, kwargs, store, False)
        self.frames.append(Frame(None, self.heap.mark()))
        try:
            return self.eval(function.node.body)
        finally:
            self.frames.pop()
            self.scope = outer

    def _bind_arguments(
        self, function: Function, args: list[Value], kwargs: dict[str, Value], store: Store, uncalled: bool
    ) -> None:
        params = function.node.params
        rest = list(args)
        if function.receiver is not None:
            rest.insert(0, function.receiver)
        named = dict(kwargs)
        for param in (*params.posonly_params, *params.params):
            name = param.name.value
            if rest:
                store[name] = rest.pop(0)
            elif name in named:
                store[name] = named.pop(name)
            else:
                store[name] = self._missing_argument(function, param)
        for param in params.kwonly_params:
            name = param.name.value
            store[name] = named.pop(name) if name in named else self._missing_argument(function, param)
        if isinstance(params.star_arg, cst.Param):
            store[params.star_arg.name.value] = seq(rest, "tuple", open=uncalled)
        if params.star_kwarg is not None:
            store[params.star_kwarg.name.value] = Dict({**named, **({ANY: unknown()} if uncalled else {})})

    def _missing_argument(self, function: Function, param: cst.Param) -> Value:
        name = param.name.value
        if name in function.defaults:
            return function.defaults[name]
        annotation = param.annotation.annotation if param.annotation is not None else None
        if isinstance(annotation, cst.Name) and annotation.value in ("int", "float", "bool"):
            return Number() if annotation.value != "bool" else unknown()
        return unknown()

    # ---- iteration

    def concrete(self, value: Value) -> list[Value] | None:
        """The items of an iterable when they are all known and few."""
        if isinstance(value, Seq) and not value.open and len(value.items) <= MAX_CONCRETE:
            return list(value.items)
        if isinstance(value, Dict) and ANY not in value.store and len(value.store) <= MAX_CONCRETE:
            return [Const(key) for key in value.store]
        found: list[Value] | None = self.torch.children(value) if isinstance(value, Instance) else None
        return found

    def element(self, value: Value) -> Value:
        """One item of an iterable, standing for all."""
        if isinstance(value, Choice):
            return choice(self.element(option) for option in value.options)
        if isinstance(value, Seq):
            return _join_all(value.items) if value.items else unknown()
        if isinstance(value, Instance) and isinstance(value.cls, Class):
            for name in ("__iter__", "__getitem__"):
                method = self.find_method(value.cls, name)
                if method is not None:
                    args: list[Value] = [] if name == "__iter__" else [Number()]
                    found = self.call(self.bind(method[0], value, method[1]), args, {}, None)
                    return self.element(found) if name == "__iter__" else found
        result: Value = self.torch.element(value)
        return result

    # ---- attributes and items

    def get_attribute(self, value: Value, name: str, node: Any) -> Value:
        if isinstance(value, Choice):
            kept = [o for o in value.options if not (isinstance(o, Const) and o.value is None)]
            return choice(self.get_attribute(option, name, node) for option in kept) if kept else unknown()
        if isinstance(value, Instance):
            found = self._instance_attribute(value, name, node)
            if found is not None:
                return found
        if isinstance(value, Class):
            for owner in self.mro(value):
                if name in owner.store:
                    member: Value = owner.store[name]
                    if isinstance(member, Function):
                        kinds = {d.name for d in member.decorators if isinstance(d, Ref)}
                        if "builtins.classmethod" in kinds:
                            return self.bind(member, value, owner)
                        return Function(member.node, member.scope, member.defaults, owner, None, member.decorators)
                    return member
            if name == "__name__":
                return Const(value.name)
        if isinstance(value, ModuleRef):
            if name in value.store:
                stored: Value = value.store[name]
                return stored
            return unknown()
        if isinstance(value, Super):
            return self._super_attribute(value, name)
        if isinstance(value, Ref):
            found_ref: Value = self.torch.reference(f"{value.name}.{name}", self.spot(node))
            return found_ref
        result: Value = self.torch.attribute(value, name, node)
        return result

    def _instance_attribute(self, value: Instance, name: str, node: Any) -> Value | None:
        if name in value.store:
            stored: Value = value.store[name]
            return stored
        if isinstance(value.cls, Class):
            for owner in self.mro(value.cls):
                if name in owner.store:
                    member: Value = owner.store[name]
                    if not isinstance(member, Function):
                        return member
                    bound = self.bind(member, value, owner)
                    kinds = {d.name for d in member.decorators if isinstance(d, Ref)}
                    if kinds & {"builtins.property", "functools.cached_property", "torch.jit.unused"} and kinds & {
                        "builtins.property",
                        "functools.cached_property",
                    }:
                        return self.call(bound, [], {}, node)
                    return bound
            if name == "__class__":
                return value.cls
        return None

    def _super_attribute(self, value: Super, name: str) -> Value:
        receiver = value.receiver
        cls = receiver.cls if isinstance(receiver, Instance) else receiver
        order = self.mro(cls)
        if value.owner in order:
            order = order[order.index(value.owner) + 1 :]
        for owner in order:
            found = owner.store.get(name)
            if isinstance(found, Function):
                return self.bind(found, receiver, owner)
        return Bound(receiver, f"super.{name}")

    def set_attribute(self, target: Value, name: str, value: Value, node: Any) -> None:
        for option in options(target):
            if isinstance(option, Instance):
                self.torch.attribute_set(option, name, value, node)
                weak = isinstance(target, Choice)
                self.heap.put(option.store, name, join(option.store.get(name, MISSING), value) if weak else value)
            elif isinstance(option, (ModuleRef, Class)):
                self.heap.put(option.store, name, value)
            else:
                self.torch.attribute_set(option, name, value, node)

    def get_item(self, value: Value, index: Value, node: Any) -> Value:
        if isinstance(value, Choice):
            return choice(self.get_item(option, index, node) for option in value.options)
        if isinstance(index, Choice):
            return choice(self.get_item(value, option, node) for option in index.options)
        if isinstance(value, Seq):
            number = constant(index)
            if isinstance(number, int) and not value.open and -len(value.items) <= number < len(value.items):
                return value.items[number]
            if isinstance(index, Seq) and index.kind == "slice":
                return self._slice(value, index)
            return self.element(value)
        if isinstance(value, Dict):
            return self._dict_item(value, index)
        result: Value = self.torch.item(value, index, node)
        return result

    def _slice(self, value: Seq, index: Seq) -> Value:
        bounds: list[Any] = [constant(b) if isinstance(b, Const) else "?" for b in index.items]
        if not value.open and all(b is None or isinstance(b, int) for b in bounds):
            return seq(value.items[slice(*bounds)], value.kind)
        return seq(value.items, value.kind, open=True)

    def _dict_item(self, value: Dict, index: Value) -> Value:
        if value.kind == "optimizer_state":
            return self.torch.param_state(value)  # type: ignore[no-any-return]
        key = self._key(index)
        if key is not MISSING and key in value.store:
            stored: Value = value.store[key]
            return stored
        if ANY in value.store and not (key is not MISSING and value.kind == "param_state"):
            found: Value = value.store[ANY]
            return found
        if key is MISSING and value.store and value.kind != "param_state":
            return choice(value.store.values())
        return unknown()

    def _key(self, index: Value) -> Any:
        if isinstance(index, Const) and isinstance(index.value, (str, int, float, bool, type(None))):
            return index.value
        return MISSING

    def set_item(self, target: Value, index: Value, value: Value, node: Any) -> None:
        for option in options(target):
            if isinstance(option, Dict):
                self.torch.stored(option, constant(index), value, node)
                key = self._key(index)
                if key is MISSING:
                    self.heap.put(option.store, ANY, join(option.store.get(ANY, MISSING), value))
                else:
                    self.heap.put(option.store, key, value)
            elif isinstance(option, Seq):
                number = constant(index)
                items = list(option.items)
                if isinstance(number, int) and not option.open and -len(items) <= number < len(items):
                    items[number] = value
                else:
                    items = [join(item, value) for item in items]
                self.heap.put(option.store, "items", tuple(items))
            else:
                self.torch.item_set(option, index, value, node)

    # ---- expressions

    def eval(self, node: Any) -> Value:
        """The abstract value of an expression, with its effects."""
        handler = EXPRESSIONS.get(type(node))
        if handler is None:
            return unknown()
        found: Value = handler(self, node)
        return found

    def _name(self, node: cst.Name) -> Value:
        name = node.value
        scope: Scope | None = self.scope
        while scope is not None:
            found = scope.store.get(name)
            if found is not None:
                value: Value = found
                return value
            scope = scope.parent
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if hasattr(builtins, name):
            return Ref(f"builtins.{name}")
        return unknown()

    def _attribute(self, node: cst.Attribute) -> Value:
        return self.get_attribute(self.eval(node.value), node.attr.value, node)

    def _subscript(self, node: cst.Subscript) -> Value:
        value = self.eval(node.value)
        return self.get_item(value, self._index(node), node)

    def _index(self, node: cst.Subscript) -> Value:
        parts = [self._one_index(element.slice) for element in node.slice]
        return parts[0] if len(parts) == 1 else seq(parts, "tuple")

    def _one_index(self, part: Any) -> Value:
        if isinstance(part, cst.Index):
            return self.eval(part.value)
        ends = [self.eval(e) if e is not None else NONE for e in (part.lower, part.upper, part.step)]
        return seq(ends, "slice")

    def _call(self, node: cst.Call) -> Value:
        function = self.eval(node.func)
        args: list[Value] = []
        kwargs: dict[str, Value] = {}
        for arg in node.args:
            value = self.eval(arg.value)
            if arg.star == "*":
                items = self.concrete(value)
                if items is not None:
                    args.extend(items)
                else:
                    args.append(Seq({"items": (self.element(value),), "open": True}, "star"))
            elif arg.star == "**":
                if isinstance(value, Dict):
                    kwargs.update({k: v for k, v in value.store.items() if isinstance(k, str) and k != ANY})
                    if ANY in value.store:
                        kwargs["\0rest"] = unknown()
                else:
                    kwargs["\0rest"] = value
            elif arg.keyword is not None:
                kwargs[arg.keyword.value] = value
            else:
                args.append(value)
        if isinstance(function, Ref) and function.name == "builtins.super":
            return self._super(args)
        return self.call(function, args, kwargs, node)

    def _super(self, args: list[Value]) -> Value:
        for frame in reversed(self.frames):
            if frame.receiver is not None:
                owner = args[0] if args else frame.owner
                return Super(owner, frame.receiver)
        return unknown()

    def _binary(self, node: cst.BinaryOperation) -> Value:
        left, right = self.eval(node.left), self.eval(node.right)
        op = type(node.operator).__name__
        return self.binary(op, left, right, node)

    def binary(self, op: str, left: Value, right: Value, node: Any) -> Value:
        if isinstance(left, Const) and isinstance(right, Const):
            return fold(op, left.value, right.value)
        if isinstance(left, Seq) and isinstance(right, Seq) and op == "Add":
            return seq((*left.items, *right.items), left.kind, left.open or right.open)
        if isinstance(left, Seq) and left.kind in ("list", "tuple") and op == "Multiply":
            return seq(left.items, left.kind, open=True)
        result: Value = self.torch.binary(op, left, right, node)
        return result

    def _unary(self, node: cst.UnaryOperation) -> Value:
        value = self.eval(node.expression)
        if isinstance(node.operator, cst.Not):
            known = truth(value)
            return unknown() if known is None else Const(not known)
        if isinstance(value, Const) and isinstance(value.value, (int, float)):
            if isinstance(node.operator, cst.Minus):
                return Const(-value.value)
            if isinstance(node.operator, cst.Plus):
                return Const(+value.value)
            return Number()
        return value

    def _boolean(self, node: cst.BooleanOperation) -> Value:
        left = self.eval(node.left)
        known = truth(left)
        conjunction = isinstance(node.operator, cst.And)
        if known is not None:
            return self.eval(node.right) if known == conjunction else left
        right = self.eval(node.right)
        if truth(right) is (not conjunction):
            return Const(not conjunction) if isinstance(right, Const) and isinstance(right.value, bool) else unknown()
        if conjunction:
            return unknown(*_marks(right))
        kept = [option for option in options(left) if truth(option) is not False]
        return choice([*kept, right])

    def _comparison(self, node: cst.Comparison) -> Value:
        left = self.eval(node.left)
        if len(node.comparisons) != 1:
            for part in node.comparisons:
                self.eval(part.comparator)
            return unknown()
        part = node.comparisons[0]
        right = self.eval(part.comparator)
        return self.compare(type(part.operator).__name__, left, right)

    def compare(self, op: str, left: Value, right: Value) -> Value:
        if isinstance(left, Choice) and not isinstance(right, Choice):
            return choice(self.compare(op, option, right) for option in left.options)
        if isinstance(right, Choice) and not isinstance(left, Choice):
            return choice(self.compare(op, left, option) for option in right.options)
        if op in ("Is", "IsNot") and constant(right) is None and isinstance(right, Const):
            if isinstance(left, Const):
                return Const((left.value is None) == (op == "Is"))
            if not isinstance(left, Opaque):
                return Const(op == "IsNot")
            return unknown()
        if isinstance(left, DType) and isinstance(right, DType):
            if op in ("Equal", "NotEqual", "Is", "IsNot"):
                positive = op in ("Equal", "Is")
                if len(left.names) == 1 and left.names == right.names:
                    return Const(positive)
                if not left.names & right.names:
                    return Const(not positive)
            return unknown()
        if op in ("In", "NotIn"):
            return self._contains(op, left, right)
        if isinstance(left, Const) and isinstance(right, Const):
            return compare_constants(op, left.value, right.value)
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return Tensor(frozenset({"bool"}))
        return unknown()

    def _contains(self, op: str, left: Value, right: Value) -> Value:
        positive = op == "In"
        if isinstance(left, Const) and isinstance(right, Const) and isinstance(right.value, str):
            if isinstance(left.value, str):
                return Const((left.value in right.value) == positive)
            return unknown()
        if isinstance(right, Seq) and not right.open:
            if isinstance(left, Const) and all(isinstance(i, Const) for i in right.items):
                return Const(any(i.value == left.value for i in right.items if isinstance(i, Const)) == positive)
            if isinstance(left, DType) and all(isinstance(i, DType) for i in right.items):
                names = frozenset().union(*(i.names for i in right.items if isinstance(i, DType)))
                if left.names <= names:
                    return Const(positive)
                if not left.names & names:
                    return Const(not positive)
        if isinstance(right, Dict) and isinstance(left, Const) and ANY not in right.store and right.kind == "dict":
            return Const((left.value in right.store) == positive)
        return unknown()

    def _if_exp(self, node: cst.IfExp) -> Value:
        known = truth(self.eval(node.test))
        if known is not None:
            return self.eval(node.body if known else node.orelse)
        self.guards.append(self.text(node.test))
        try:
            return join(self.eval(node.body), self.eval(node.orelse))  # type: ignore[no-any-return]
        finally:
            self.guards.pop()

    def _sequence(self, node: Any) -> Value:
        items: list[Value] = []
        open_ = False
        for element in node.elements:
            value = self.eval(element.value)
            if isinstance(element, cst.StarredElement):
                known = self.concrete(value)
                items.extend(known if known is not None else [self.element(value)])
                open_ = open_ or known is None
            else:
                items.append(value)
        return seq(items, type(node).__name__.lower(), open_)

    def _dict(self, node: cst.Dict) -> Value:
        store: Store = {}
        for element in node.elements:
            if not isinstance(element, cst.DictElement):
                value = self.eval(element.value)
                store.update(value.store if isinstance(value, Dict) else {ANY: unknown()})
                continue
            key = self._key(self.eval(element.key))
            value = self.eval(element.value)
            if key is MISSING:
                store[ANY] = join(store.get(ANY, MISSING), value)
            else:
                store[key] = value
        return Dict(store)

    def _comprehension(self, node: Any) -> Value:
        items, open_ = self._generate(node.for_in, lambda: self._element(node.elt))
        return seq(items, "list" if isinstance(node, cst.ListComp) else "iterator", open_)

    def _element(self, node: Any) -> Value:
        """One item of a comprehension, which may replace an older one."""
        rebuilt, self.rebuilt = self.rebuilt, frozenset()
        value = self.eval(node)
        self.rebuilt = rebuilt
        result: Value = self.torch.rebuilding(node, rebuilt, value) if rebuilt else value
        return result

    def _dict_comp(self, node: cst.DictComp) -> Value:
        pairs, open_ = self._generate(node.for_in, lambda: seq([self.eval(node.key), self._element(node.value)]))
        store: Store = {}
        for pair in pairs:
            assert isinstance(pair, Seq)
            key = self._key(pair.items[0])
            if key is MISSING or open_:
                store[ANY] = join(store.get(ANY, MISSING), pair.items[1])
            else:
                store[key] = pair.items[1]
        return Dict(store)

    def _generate(self, for_in: Any, produce: Callable[[], Value]) -> tuple[list[Value], bool]:
        outer = self.scope
        self.scope = Scope({}, outer, outer.source, outer.function)
        results: list[Value] = []
        try:
            open_ = self._generate_into(for_in, produce, results)
        finally:
            self.scope = outer
        return results, open_

    def _generate_into(self, for_in: Any, produce: Callable[[], Value], results: list[Value]) -> bool:
        iterable = self.eval(for_in.iter)
        items = self.concrete(iterable)
        open_ = items is None
        for item in items if items is not None else [self.element(iterable)]:
            self.budget -= 1
            if self.budget < 0:
                raise OutOfBudget
            self.assign(for_in.target, item)
            verdicts = [truth(self.eval(condition.test)) for condition in for_in.ifs]
            if False in verdicts:
                continue
            open_ = open_ or None in verdicts
            if for_in.inner_for_in is not None:
                open_ = self._generate_into(for_in.inner_for_in, produce, results) or open_
            else:
                results.append(produce())
        return open_

    def _lambda(self, node: cst.Lambda) -> Value:
        return Function(node, self.scope, self._defaults(node.params))

    def _string(self, node: Any) -> Value:
        known = self._constants.get(node)
        if known is None:
            found = node.evaluated_value
            known = self._constants[node] = Const(found if isinstance(found, (str, bytes)) else "")
        return known

    def _formatted(self, node: cst.FormattedString) -> Value:
        pieces: list[str] = []
        known = True
        for part in node.parts:
            if isinstance(part, cst.FormattedStringText):
                pieces.append(part.value)
            elif isinstance(part, cst.FormattedStringExpression):
                value = self.eval(part.expression)
                known = known and isinstance(value, Const)
                pieces.append(str(constant(value)))
        return Const("".join(pieces)) if known else unknown("string")

    def _integer(self, node: Any) -> Value:
        try:
            known = self._constants.get(node) or Const(node.evaluated_value)
        except ValueError:
            return Number()
        self._constants[node] = known
        return known

    def _float(self, node: cst.Float) -> Value:
        return self._integer(node)

    def _named(self, node: cst.NamedExpr) -> Value:
        value = self.eval(node.value)
        self.assign(node.target, value)
        return value

    def _await(self, node: cst.Await) -> Value:
        return self.eval(node.expression)

    def _yield(self, node: cst.Yield) -> Value:
        frame = self.frames[-1]
        value: Value = NONE
        if isinstance(node.value, cst.From):
            value = self.element(self.eval(node.value.item))
        elif node.value is not None:
            value = self.eval(node.value)
        frame.yields.append(value)
        if frame.on_yield is not None:
            run, frame.on_yield = frame.on_yield, None
            run()
        return unknown()


def _marks(value: Value) -> frozenset[str]:
    return value.marks if isinstance(value, (Tensor, Opaque)) else frozenset()


def _join_all(values: Iterable[Value]) -> Value:
    result: Any = MISSING
    for value in values:
        result = join(result, value)
    return unknown() if result is MISSING else result


def dotted(node: Any) -> str:
    """`a.b.c` of nested attributes; empty when it is anything else."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr.value}" if front else ""
    return ""


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Subtract": operator.sub,
    "Multiply": operator.mul,
    "Divide": operator.truediv,
    "FloorDivide": operator.floordiv,
    "Modulo": operator.mod,
    "BitOr": operator.or_,
    "BitAnd": operator.and_,
    "LeftShift": lambda a, b: a << b if 0 <= b < 128 else NotImplemented,
}


def fold(op: str, left: Any, right: Any) -> Value:
    """Constant folding; a Number where the result is too large or undefined."""
    try:
        if op == "Power":
            if not isinstance(left, (int, float)) or not isinstance(right, (int, float)) or abs(right) > 400:
                return Number()
            result = float(left) ** right if isinstance(left, float) else left**right
        elif op in _OPERATORS:
            if isinstance(left, str) and op == "Multiply":
                return unknown("string")
            result = _OPERATORS[op](left, right)
        else:
            return unknown()
    except (ArithmeticError, TypeError, ValueError):
        return unknown()
    if isinstance(result, complex) or result is NotImplemented:
        return unknown()
    if isinstance(result, (str, bytes)) and len(result) > 2000:
        return unknown()
    if isinstance(result, int) and result.bit_length() > 4000:
        return Number()
    return Const(result)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equal": operator.eq,
    "NotEqual": operator.ne,
    "LessThan": operator.lt,
    "LessThanEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEqual": operator.ge,
    "Is": operator.eq,
    "IsNot": operator.ne,
}


def compare_constants(op: str, left: Any, right: Any) -> Value:
    try:
        return Const(bool(_COMPARISONS[op](left, right)))
    except (TypeError, KeyError):
        return unknown()


_CONSTANTS: dict[str, Value] = {
    "True": TRUE,
    "False": FALSE,
    "None": NONE,
    "__name__": Const("__main__"),
    "__file__": unknown(),
    "Ellipsis": Const(...),
}

STATEMENTS: dict[type, Callable[[Interpreter, Any], Any]] = {
    cst.SimpleStatementLine: Interpreter._simple_line,
    cst.Expr: Interpreter._expr,
    cst.Assign: Interpreter._assign,
    cst.AnnAssign: Interpreter._ann_assign,
    cst.AugAssign: Interpreter._aug_assign,
    cst.If: Interpreter._if,
    cst.For: Interpreter._for,
    cst.While: Interpreter._while,
    cst.Break: Interpreter._break,
    cst.Continue: Interpreter._continue,
    cst.Return: Interpreter._return,
    cst.Raise: Interpreter._raise,
    cst.With: Interpreter._with,
    cst.Try: Interpreter._try,
    cst.TryStar: Interpreter._try,
    cst.FunctionDef: Interpreter._function_def,
    cst.ClassDef: Interpreter._class_def,
    cst.Import: Interpreter._import,
    cst.ImportFrom: Interpreter._import_from,
    cst.Global: Interpreter._global,
    cst.Nonlocal: Interpreter._global,
    cst.Match: Interpreter._match,
    cst.Assert: Interpreter._assert,
}

EXPRESSIONS: dict[type, Callable[[Interpreter, Any], Value]] = {
    cst.Name: Interpreter._name,
    cst.Attribute: Interpreter._attribute,
    cst.Subscript: Interpreter._subscript,
    cst.Call: Interpreter._call,
    cst.BinaryOperation: Interpreter._binary,
    cst.UnaryOperation: Interpreter._unary,
    cst.BooleanOperation: Interpreter._boolean,
    cst.Comparison: Interpreter._comparison,
    cst.IfExp: Interpreter._if_exp,
    cst.Tuple: Interpreter._sequence,
    cst.List: Interpreter._sequence,
    cst.Set: Interpreter._sequence,
    cst.Dict: Interpreter._dict,
    cst.ListComp: Interpreter._comprehension,
    cst.GeneratorExp: Interpreter._comprehension,
    cst.SetComp: Interpreter._comprehension,
    cst.DictComp: Interpreter._dict_comp,
    cst.Lambda: Interpreter._lambda,
    cst.SimpleString: Interpreter._string,
    cst.ConcatenatedString: Interpreter._string,
    cst.FormattedString: Interpreter._formatted,
    cst.Integer: Interpreter._integer,
    cst.Float: Interpreter._float,
    cst.NamedExpr: Interpreter._named,
    cst.Await: Interpreter._await,
    cst.Yield: Interpreter._yield,
}
