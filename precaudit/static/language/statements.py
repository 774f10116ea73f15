"""Statements that run in order: assignments, with, definitions, imports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.language import branches, calls, objects
from precaudit.static.language.heap import Store
from precaudit.static.language.scopes import Scope
from precaudit.static.language.values import (
    Class,
    Const,
    Dict,
    Function,
    ModuleRef,
    Ref,
    Seq,
    Unread,
    Value,
    truth,
    unknown,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter


KEEPS = re.compile(r"\]\s{0,9}=(?!=)|\.(?:append|update|setdefault|_?register\w*)\(|\bsetattr\(")
"""How a decorator says that it puts what it is given somewhere."""


def dotted(node: Any) -> str:
    """`a.b.c` of nested attributes; empty when it is anything else."""
    if type(node) is cst.Name:
        return str(node.value)
    if type(node) is cst.Attribute:
        front = dotted(node.value)
        return f"{front}.{node.attr.value}" if front else ""
    return ""


SIGNS = {cst.Is: "is", cst.IsNot: "is not", cst.Equal: "==", cst.NotEqual: "!=", cst.In: "in", cst.NotIn: "not in"}


def plain(node: Any) -> str:
    """The text of a name or attribute, or of one compared with another; empty when it is anything else."""
    if type(node) is not cst.Comparison or len(node.comparisons) != 1:
        return dotted(node)
    compared = node.comparisons[0]
    left, sign, right = dotted(node.left), SIGNS.get(type(compared.operator)), dotted(compared.comparator)
    return f"{left} {sign} {right}" if left and sign and right else ""


def _simple_line(run: Interpreter, node: Any) -> bool:
    return run.block(node.body)


def _expr(run: Interpreter, node: cst.Expr) -> None:
    run.eval(node.value)


def _assign(run: Interpreter, node: cst.Assign) -> None:
    made: Any = node.value
    if type(made) is cst.IfExp and truth(run.eval(made.test)) is None:
        # As `if`, so that what is assigned on either side belongs to the condition.
        sides = [partial(_assign_value, run, node, side) for side in (made.body, made.orelse)]
        branches.either(run, made.test, *sides)
    else:
        _assign_value(run, node, made)


def _assign_value(run: Interpreter, node: cst.Assign, made: Any) -> bool:
    _rebuilding(run, node)
    value = run.eval(made)
    run.rebuilt = frozenset()
    if len(node.targets) == 1:
        value = run.library.rebinding(node.targets[0].target, made, value)
    for target in node.targets:
        objects.assign(run, target.target, value)
    return True


def _rebuilding(run: Interpreter, node: cst.Assign) -> None:
    """`xs = [f(x) for x in xs]`: its loop variables stand for what the new list replaces."""
    made: Any = node.value
    target = node.targets[0].target
    if type(made) not in (cst.ListComp, cst.DictComp) or type(target) not in (cst.Name, cst.Attribute):
        return
    if run.text(target) in run.text(made.for_in.iter):
        run.rebuilt = frozenset(re.findall(r"\w+", run.text(made.for_in.target)))


def _ann_assign(run: Interpreter, node: cst.AnnAssign) -> None:
    of = node.annotation.annotation
    of_class = type(of) is cst.Subscript and dotted(of.value).endswith("ClassVar")
    if isinstance(node.target, cst.Name) and not of_class:
        run.scope.store.setdefault("\0annotations", {})[node.target.value] = of
    if node.value is not None:
        objects.assign(run, node.target, run.eval(node.value))


def _aug_assign(run: Interpreter, node: cst.AugAssign) -> None:
    target = run.eval(node.target)
    value = run.eval(node.value)
    op = type(node.operator).__name__.removesuffix("Assign")
    result = run.library.augmented(op, target, value, node)
    objects.assign(run, node.target, result)


def _with(run: Interpreter, node: cst.With) -> bool:
    depth = len(run.contexts)
    bodies: list[Value] = []
    for item in node.items:
        value = run.eval(item.item)
        context, bound = run.library.enter(value, item.item)
        if isinstance(context, Function):
            bodies.append(context)
        elif context is not None:
            run.contexts.append(context)
        if item.asname is not None:
            objects.assign(run, item.asname.name, bound)
    try:
        if bodies:
            return _with_generator(run, bodies, node)
        return run.body(node.body)
    finally:
        del run.contexts[depth:]


def _with_generator(run: Interpreter, bodies: list[Value], node: cst.With) -> bool:
    """Runs the body at the `yield` of a function decorated with contextmanager."""
    alive = [True]
    scope, frames = run.scope, run.frames
    rest = bodies[1:]

    def body() -> None:
        inner_scope, inner_frames = run.scope, run.frames
        run.scope, run.frames = scope, frames
        try:
            alive[0] = _with_generator(run, rest, node) if rest else run.body(node.body)
        finally:
            run.scope, run.frames = inner_scope, inner_frames

    first = bodies[0]
    assert isinstance(first, Function)
    arguments, keywords = first.defaults.get("\0args"), first.defaults.get("\0kwargs")
    args = list(arguments.items) if isinstance(arguments, Seq) else []
    kwargs = dict(keywords.store) if isinstance(keywords, Dict) else {}
    run.frames = list(frames)
    try:
        calls.call_function(run, first, args, kwargs, node, on_yield=body)
    finally:
        run.frames = frames
    return alive[0]


def _function_def(run: Interpreter, node: cst.FunctionDef) -> None:
    decorators = tuple(run.eval(d.decorator) for d in node.decorators)
    value = Function(node, run.scope, calls.defaults(run, node.params), None, None, decorators)
    if decorators:
        bare = replace(value, decorators=())
        value = replace(value, decorators=_registered(run, bare, decorators, node))
    run.heap.put(run.scope.store, node.name.value, value)


def _registered(run: Interpreter, made: Value, decorators: tuple[Value, ...], node: Any) -> tuple[Value, ...]:
    """Runs the decorators that put what they are given into a registry, and gives back the others."""

    def keeps(decorator: Value) -> bool:
        if not isinstance(decorator, Function) or not KEEPS.search(decorator.scope.source.code(decorator.node)):
            return False
        return calls.call_function(run, decorator, [made], {}, node) is made

    return tuple(decorator for decorator in decorators if not keeps(decorator))


def _class_def(run: Interpreter, node: cst.ClassDef) -> None:
    bases = tuple(_base(run.eval(arg.value)) for arg in node.bases)
    decorators = tuple(run.eval(d.decorator) for d in node.decorators)
    store: Store = {}
    outer = run.scope
    name = node.name.value
    qualified = f"{outer.function}.{name}" if outer.function else name
    run.scope = Scope(store, outer, outer.source, qualified)
    try:
        run.block(node.body.body)
    finally:
        run.scope = outer
    made = Class(node, outer, bases, store, name, decorators)
    run.library.class_made(made)
    run.heap.put(outer.store, name, made)
    _registered(run, made, decorators, node)


def _base(value: Value) -> Value:
    """What a class derives from, read where that was left for later."""
    return (value.read() or value) if isinstance(value, Unread) else value


def _import(run: Interpreter, node: cst.Import) -> None:
    for alias in node.names:
        name = dotted(alias.name)
        if alias.asname is not None:
            objects.assign(run, alias.asname.name, _module(run, name, 0))
        else:
            _import_package(run, name)


def _import_package(run: Interpreter, name: str) -> None:
    """`import a.b.c` binds `a`, in which `b` is found, in which `c`."""
    first, *rest = name.split(".")
    module = run.scope.store.get(first)
    if not isinstance(module, (ModuleRef, Ref)):
        module = _module(run, first, 0)
    leaf = run.find_module(run.scope.source, name, 0) if rest else None
    if leaf is not None:
        holder = module = module if isinstance(module, ModuleRef) else ModuleRef(run.scope.source, {})
        for part in rest[:-1]:
            inner = holder.store.get(part)
            inner = inner if isinstance(inner, ModuleRef) else ModuleRef(run.scope.source, {})
            run.heap.put(holder.store, part, inner)
            holder = inner
        run.heap.put(holder.store, rest[-1], leaf)
    run.heap.put(run.scope.store, first, module)


def _import_from(run: Interpreter, node: cst.ImportFrom) -> None:
    name = dotted(node.module) if node.module is not None else ""
    level = len(node.relative)
    if isinstance(node.names, cst.ImportStar):
        found = run.find_module(run.scope.source, name, level)
        if found is not None:
            named = found.store.get("__all__")
            known = isinstance(named, Seq) and not named.open
            listed = {i.value for i in named.items if isinstance(i, Const)} if isinstance(named, Seq) else set()
            for key, value in found.store.items():
                if key in listed if known else not key.startswith(("_", "\0")):
                    run.heap.put(run.scope.store, key, value)
        return
    for alias in node.names:
        imported = dotted(alias.name)
        value = (
            run.find_name(run.scope.source, name, level, imported)
            or run.find_module(run.scope.source, f"{name}.{imported}" if name else imported, level)
            or run.find_unread(run.scope.source, name, level, imported)
            or (unknown() if level else run.library.reference(f"{name}.{imported}", run.spot(alias)))
        )
        bound = alias.asname.name if alias.asname is not None else alias.name
        if isinstance(bound, cst.Name):
            run.heap.put(run.scope.store, bound.value, value)


def _module(run: Interpreter, name: str, level: int) -> Value:
    found = run.find_module(run.scope.source, name, level)
    if found is not None:
        return found
    return Ref(name) if not level else unknown()


def _global(run: Interpreter, node: Any) -> None:
    names = run.scope.store.setdefault("\0globals", set())
    names.update(item.name.value for item in node.names)


def _assert(run: Interpreter, node: cst.Assert) -> None:
    run.eval(node.test)


STATEMENTS: dict[type, Callable[[Interpreter, Any], Any]] = {
    cst.SimpleStatementLine: _simple_line,
    cst.Expr: _expr,
    cst.Assign: _assign,
    cst.AnnAssign: _ann_assign,
    cst.AugAssign: _aug_assign,
    cst.With: _with,
    cst.FunctionDef: _function_def,
    cst.ClassDef: _class_def,
    cst.Import: _import,
    cst.ImportFrom: _import_from,
    cst.Global: _global,
    cst.Nonlocal: _global,
    cst.Assert: _assert,
}
