"""Reads from a witness's own code what its Facts can say: which kinds and roles, attributes, values and evidence.

Nothing is run. A Fact is made where a call names a `Kind`; its attributes are the call's `attrs={...}`, the keywords
that a `**attrs` helper takes, and what `….attrs["key"] = value` adds later. A name stands for what is assigned to it, a
parameter for what its callers give. What cannot be read so is `ANY`, and speaks neither for nor against anything.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from precaudit.model.vocabulary import Kind, Role

PACKAGE = Path(__file__).parent.parent / "precaudit"
WITNESSES: Mapping[str, tuple[str, ...]] = {
    "check": ("static", "allowed/contract.py"),
    "trace": ("runtime", "launch/merge.py", "allowed/contract.py"),
    "checkpoint": ("checkpoint", "allowed/contract.py"),
}
"""The code of each witness; what ranks hold differently is seen where their files are merged."""

ANY: Any = object()
"""A value, kind or role that the code does not tell."""
DEEPEST = 8
"""Assignments and callers that one name is followed through."""


class Said(NamedTuple):
    """One attribute, or evidence, that a Fact of this kind and role can carry."""

    kind: Any
    role: Any
    key: str
    value: Any
    where: str


class Made(NamedTuple):
    """What a Fact is about."""

    kind: Any
    role: Any


class Scope(NamedTuple):
    """A function with those around it, innermost first; the file's own statements have none."""

    functions: tuple[ast.FunctionDef, ...]
    file: str


@dataclass(frozen=True)
class Callable_:
    """Something of the witness that can be called: a function, or a class with typed fields."""

    names: tuple[str, ...]
    """Its parameters, without self."""
    keywords: str
    """The name of `**keywords`, or ""."""
    node: ast.FunctionDef | ast.ClassDef
    scope: Scope

    def argument(self, call: ast.Call, name: str) -> ast.expr | None:
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
        if name in self.names and self.names.index(name) < len(call.args):
            found = call.args[self.names.index(name)]
            return None if isinstance(found, ast.Starred) else found
        return None


@dataclass
class Witness:
    """The code of one witness, and what it says."""

    files: list[Path]
    unread: list[str] = field(default_factory=list)
    """Attributes whose names could not be read: the code should be written so that they can."""
    _known: dict[Any, set[Any]] = field(default_factory=dict)
    """What was worked out for an expression; empty while it is being worked out."""

    # -- what it says

    @cached_property
    def attributes(self) -> set[Said]:
        found: set[Said] = set()
        for node, scope in self._nodes():
            if isinstance(node, ast.Call):
                found.update(self._of_call(node, scope, "attrs"))
            elif isinstance(node, ast.Assign):
                found.update(self._of_store(node, scope, "attrs"))
        return found

    @cached_property
    def evidence(self) -> set[Said]:
        found: set[Said] = set()
        for node, scope in self._nodes():
            if isinstance(node, ast.Call):
                found.update(self._of_call(node, scope, "evidence"))
            elif isinstance(node, ast.Assign):
                found.update(self._of_store(node, scope, "evidence"))
        return found

    @cached_property
    def made(self) -> set[Made]:
        """Kinds and roles of all Facts."""
        found: set[Made] = set()
        for node, scope in self._nodes():
            if isinstance(node, ast.Call) and any(isinstance(k, Kind) for k in self._words(node, scope, Kind)):
                found.update(self._about(node, scope))
        return found

    # -- sources of attributes

    def _of_call(self, call: ast.Call, scope: Scope, what: str) -> Iterator[Said]:
        """`Observation(Kind.X, attrs={...})`, `facts.add(Kind.X, key=value)`, `seen.attrs.update(key=value)`."""
        where = f"{scope.file}:{call.lineno}"
        if _is_update(call, what):
            assert isinstance(call.func, ast.Attribute)
            assert isinstance(call.func.value, ast.Attribute)
            about = self._makes(call.func.value.value, scope)
            for keyword in call.keywords:
                yield from self._said(about, keyword.arg, keyword.value, scope, where)
            for argument in call.args:
                for key, value, at in self._entries(argument, scope, where):
                    yield from self._said(about, key, value, at, where)
            return
        named = next((k.value for k in call.keywords if k.arg == what), None)
        callees = self._callees(call, scope)
        for callee in callees:
            named = named if named is not None else callee.argument(call, what)
        if named is not None and not _hands_on(named):
            for key, value, at in self._entries(named, scope, where):
                yield from self._said(self._about(call, scope), key, value, at, where)
        if what == "attrs" and any(callee.keywords == "attrs" for callee in callees):
            own = {name for callee in callees for name in callee.names}
            for keyword in call.keywords:
                if keyword.arg is None and not _hands_on(keyword.value):
                    for key, value, at in self._entries(keyword.value, scope, where):
                        yield from self._said(self._about(call, scope), key, value, at, where)
                elif keyword.arg is not None and keyword.arg not in own:
                    yield from self._said(self._about(call, scope), keyword.arg, keyword.value, scope, where)

    def _of_store(self, node: ast.Assign, scope: Scope, what: str) -> Iterator[Said]:
        """`seen.attrs["key"] = value`, chained or not."""
        for target in node.targets:
            if not isinstance(target, ast.Subscript) or not isinstance(target.value, ast.Attribute):
                continue
            if target.value.attr == what:
                where = f"{scope.file}:{node.lineno}"
                for about, keys in self._together(target.value.value, target.slice, scope):
                    for key in keys:
                        yield from self._said(about, key, node.value, scope, where)

    def _together(self, fact: ast.expr, key: ast.expr, scope: Scope) -> Iterator[tuple[set[Made], set[Any]]]:
        """What a Fact is about and the key stored in it; caller by caller where both are parameters of a function."""
        for level, function in enumerate(scope.functions):
            mine = _parameters(function)
            if isinstance(fact, ast.Name) and isinstance(key, ast.Name) and {fact.id, key.id} <= {*mine.names}:
                outer = Scope(scope.functions[level + 1 :], scope.file)
                callee = Callable_(mine.names, mine.keywords, function, outer)
                for call, at in self._calls_of(function, outer):
                    one, other = callee.argument(call, fact.id), callee.argument(call, key.id)
                    if one is not None and other is not None:
                        yield self._makes(one, at), self.values(other, at)
                return
        yield self._makes(fact, scope), self.values(key, scope)

    def _said(self, about: set[Made], key: Any, value: ast.expr, scope: Scope, where: str) -> Iterator[Said]:
        if not isinstance(key, str):
            self.unread.append(where)
            return
        for made, each in itertools.product(about, self.values(value, scope) - {None}):
            yield Said(made.kind, made.role, key, each, where)

    def _entries(
        self, node: ast.expr, scope: Scope, where: str, depth: int = 0
    ) -> Iterator[tuple[Any, ast.expr, Scope]]:
        """The keys of a dict, with the expression of each value and the scope it stands in."""
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    yield from self._entries(value, scope, where, depth + 1)
                else:
                    yield from ((each, value, scope) for each in self.values(key, scope))
        elif isinstance(node, ast.BoolOp):
            for part in node.values:
                yield from self._entries(part, scope, where, depth + 1)
        elif isinstance(node, ast.IfExp):
            yield from self._entries(node.body, scope, where, depth + 1)
            yield from self._entries(node.orelse, scope, where, depth + 1)
        elif isinstance(node, ast.Name) and depth < DEEPEST:
            for value, at in self._assigned(node.id, scope):
                yield from self._entries(value, at, where, depth + 1)
            for store, at in self._stores(node.id, scope):
                assert isinstance(store.targets[0], ast.Subscript)
                for key in self.values(store.targets[0].slice, at):
                    yield key, store.value, at
            for value, at in self._joined(node.id, scope):
                yield from self._entries(value, at, where, depth + 1)
        elif isinstance(node, ast.Call) and _called(node) == "dict":
            for keyword in node.keywords:
                if keyword.arg is not None:
                    yield keyword.arg, keyword.value, scope
        elif isinstance(node, ast.Call) and self._callees(node, scope):
            for value, at in self._returns(node, scope):
                yield from self._entries(value, at, where, depth + 1)
        elif not _hands_on(node) and not (isinstance(node, ast.Constant) and node.value is None):
            self.unread.append(where)

    # -- what a Fact is about

    def _words(self, call: ast.Call, scope: Scope, enum: type[Any]) -> set[Any]:
        """The members of an enum among a call's arguments."""
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        out: set[Any] = set()
        for argument in given:
            if not isinstance(argument, (ast.Dict, ast.Call, ast.Constant, ast.JoinedStr)):
                out |= {value for value in self.values(argument, scope) if isinstance(value, enum)}
        return out

    def _about(self, call: ast.Call, scope: Scope) -> set[Made]:
        """What the Fact that this call makes, or changes, is about."""
        kinds = self._words(call, scope, Kind)
        roles = self._words(call, scope, Role)
        if not kinds:
            for callee in self._callees(call, scope):
                inside = [n for n in ast.walk(callee.node) if isinstance(n, ast.Attribute)]
                kinds |= {k for n in inside for k in self.values(n, callee.scope) if isinstance(k, Kind)}
        if kinds:
            return {Made(*pair) for pair in itertools.product(kinds, roles or {ANY})}
        changed = set().union(*(self._makes(argument, scope) for argument in call.args[:1]))
        return changed or {Made(ANY, ANY)}

    def _makes(self, node: ast.expr, scope: Scope) -> set[Made]:
        """What the Fact that an expression holds is about; `{Made(ANY, ANY)}` where that is not told."""
        key = ("makes", id(node))
        if key not in self._known:
            self._known[key] = set()
            self._known[key] = self._work_out(node, scope)
        return self._known[key] or {Made(ANY, ANY)}

    def _work_out(self, node: ast.expr, scope: Scope) -> set[Made]:
        found: set[Made] = set()
        if isinstance(node, ast.Call):
            if self._words(node, scope, Kind) or self._words(node, scope, Role):
                return self._about(node, scope)
            handed = [a for a in node.args if isinstance(a, ast.Call)]
            found = {made for argument in handed for made in self._makes(argument, scope) if made.kind is not ANY}
            for value, at in self._returns(node, scope) if not found else ():
                found |= self._makes(value, at)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            for call, at in self._calls.get("setdefault", []):
                if at.file == scope.file and _receiver(call) == node.value.id:
                    found |= self._makes(call.args[-1], at)
        elif isinstance(node, ast.BoolOp):
            found = set().union(*(self._makes(part, scope) for part in node.values))
        elif isinstance(node, ast.IfExp):
            found = self._makes(node.body, scope) | self._makes(node.orelse, scope)
        elif isinstance(node, ast.NamedExpr):
            found = self._makes(node.value, scope)
        elif isinstance(node, ast.Name):
            for value, at in self._assigned(node.id, scope):
                found |= self._makes(value, at)
        return {made for made in found if made.kind is not ANY}

    # -- values

    def values(self, node: ast.expr, scope: Scope) -> set[Any]:
        """What an expression can be: constants, members of Kind and Role, or ANY."""
        if isinstance(node, ast.Constant):
            return {node.value}
        key = ("values", id(node))
        if key not in self._known:
            self._known[key] = set()
            self._known[key] = self._valued(node, scope)
        return self._known[key] or {ANY}

    def _valued(self, node: ast.expr, scope: Scope) -> set[Any]:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("Kind", "Role"):
            enum = Kind if node.value.id == "Kind" else Role
            return {enum[node.attr]} if node.attr in enum.__members__ else {ANY}
        if isinstance(node, ast.IfExp):
            return self.values(node.body, scope) | self.values(node.orelse, scope)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self.values(part, scope) for part in node.values))
        if isinstance(node, (ast.Compare, ast.UnaryOp)) and not isinstance(getattr(node, "op", None), ast.USub):
            return {True, False}
        if isinstance(node, ast.NamedExpr):
            return self.values(node.value, scope)
        if isinstance(node, ast.JoinedStr):
            parts = [self.values(getattr(part, "value", part), scope) for part in node.values]
            parts = [{p.value} if isinstance(p, ast.Constant) else v for p, v in zip(node.values, parts, strict=True)]
            if any(ANY in part for part in parts):
                return {ANY}
            return {"".join(map(str, choice)) for choice in itertools.product(*parts)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "bool":
                return {True, False}
            if node.func.id in ("str", "min", "max") and len(node.args) == 1:
                return self.values(node.args[0], scope)
        if isinstance(node, ast.Call):
            return set().union(*(self.values(value, at) for value, at in self._returns(node, scope)))
        if isinstance(node, ast.Name):
            found = [self.values(value, at) for value, at in self._assigned(node.id, scope)]
            return set().union(*found)
        return {ANY}

    def _returns(self, call: ast.Call, scope: Scope) -> Iterator[tuple[ast.expr, Scope]]:
        """What the called function returns."""
        for callee in self._callees(call, scope):
            if isinstance(callee.node, ast.FunctionDef):
                inner = Scope((callee.node, *callee.scope.functions), callee.scope.file)
                for part in ast.walk(callee.node):
                    if isinstance(part, ast.Return) and part.value is not None:
                        yield part.value, inner

    def _callees(self, call: ast.Call, scope: Scope) -> list[Callable_]:
        """What may be called: of methods of `self`, those of this file where it has one."""
        found = self.callables.get(_called(call), [])
        mine = [callee for callee in found if callee.scope.file == scope.file]
        return mine if mine and _receiver(call) in ("", "self") else found

    # -- names

    def _assigned(self, name: str, scope: Scope) -> Iterator[tuple[ast.expr, Scope]]:
        """The expressions that a name can stand for: what is assigned to it, or what callers give a parameter."""
        for level, function in enumerate(scope.functions):
            here = Scope(scope.functions[level:], scope.file)
            found = list(_bound(name, ast.walk(function)))
            for value in found:
                yield value, here
            if name in _parameters(function).names:
                outer = Scope(scope.functions[level + 1 :], scope.file)
                yield from self._given(function, name, outer)
                return
            if found:
                return
        for file, tree in self.trees.items():
            for value in _bound(name, tree.body):
                yield value, Scope((), file)

    def _given(self, function: ast.FunctionDef, name: str, scope: Scope) -> Iterator[tuple[ast.expr, Scope]]:
        mine = _parameters(function)
        callee = Callable_(mine.names, mine.keywords, function, scope)
        for call, at in self._calls_of(function, scope):
            value = callee.argument(call, name)
            if value is not None:
                yield value, at
        if name in mine.defaults:
            yield mine.defaults[name], scope

    def _calls_of(self, function: ast.FunctionDef, scope: Scope) -> Iterator[tuple[ast.Call, Scope]]:
        for call, at in self._calls.get(function.name, []):
            if any(callee.node is function for callee in self._callees(call, at)):
                yield call, at

    def _stores(self, name: str, scope: Scope) -> Iterator[tuple[ast.Assign, Scope]]:
        """`name[key] = value` in the function, or those around it."""
        for level, function in enumerate(scope.functions):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                    target = node.targets[0].value
                    if isinstance(target, ast.Name) and target.id == name:
                        yield node, Scope(scope.functions[level:], scope.file)

    @staticmethod
    def _joined(name: str, scope: Scope) -> Iterator[tuple[ast.expr, Scope]]:
        """`name |= {...}` in the function, or those around it."""
        for level, function in enumerate(scope.functions):
            for node in ast.walk(function):
                if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                    yield node.value, Scope(scope.functions[level:], scope.file)

    # -- the code

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in self.files}

    def _nodes(self) -> list[tuple[ast.AST, Scope]]:
        return self._all

    @cached_property
    def _all(self) -> list[tuple[ast.AST, Scope]]:
        found: list[tuple[ast.AST, Scope]] = []
        for file, tree in self.trees.items():
            stack: list[tuple[ast.AST, Scope]] = [(tree, Scope((), file))]
            while stack:
                node, scope = stack.pop()
                found.append((node, scope))
                inner = Scope((node, *scope.functions), file) if isinstance(node, ast.FunctionDef) else scope
                stack += [(child, inner) for child in ast.iter_child_nodes(node)]
        return found

    @cached_property
    def _calls(self) -> dict[str, list[tuple[ast.Call, Scope]]]:
        found: dict[str, list[tuple[ast.Call, Scope]]] = {}
        for node, scope in self._all:
            if isinstance(node, ast.Call):
                found.setdefault(_called(node), []).append((node, scope))
        return found

    @cached_property
    def callables(self) -> dict[str, list[Callable_]]:
        """Functions, and classes with typed fields, by name."""
        found: dict[str, list[Callable_]] = {}
        for node, scope in self._all:
            if isinstance(node, ast.FunctionDef):
                mine = _parameters(node)
                found.setdefault(node.name, []).append(Callable_(mine.names, mine.keywords, node, scope))
            elif isinstance(node, ast.ClassDef):
                typed = (part.target for part in node.body if isinstance(part, ast.AnnAssign))
                fields = tuple(target.id for target in typed if isinstance(target, ast.Name))
                found.setdefault(node.name, []).append(Callable_(fields, "", node, scope))
        return found


class Parameters(NamedTuple):
    names: tuple[str, ...]
    keywords: str
    defaults: Mapping[str, ast.expr]


def _parameters(function: ast.FunctionDef) -> Parameters:
    """A function's parameters without self."""
    given = function.args
    places = [a.arg for a in (*given.posonlyargs, *given.args)]
    defaults = dict(zip(reversed(places), reversed(given.defaults), strict=False))
    names = [name for name in places if name not in ("self", "cls")] + [a.arg for a in given.kwonlyargs]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    defaults.update({a.arg: value for a, value in pairs if value is not None})
    return Parameters(tuple(names), given.kwarg.arg if given.kwarg else "", defaults)


def _called(call: ast.Call) -> str:
    """The last name of what is called: `add` of `torch.facts.add(...)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _receiver(call: ast.Call) -> str:
    """The name before the dot: `self` of `self.put(...)`; "" of a plain function."""
    if isinstance(call.func, ast.Attribute):
        return call.func.value.id if isinstance(call.func.value, ast.Name) else "."
    return ""


def _is_update(call: ast.Call, what: str) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "update"
        and isinstance(function.value, ast.Attribute)
        and function.value.attr == what
    )


def _hands_on(node: ast.expr) -> bool:
    """Whether this is what a Fact made elsewhere says: `remark.attrs`, `rest["attrs"]`, `raw.get("evidence")`."""
    if isinstance(node, ast.Call) and _called(node) in ("dict", "get") and node.args:
        return _hands_on(node.args[0])
    if isinstance(node, ast.DictComp):
        return any(_hands_on(part) for part in ast.walk(node.generators[0].iter) if isinstance(part, ast.expr))
    if isinstance(node, ast.Subscript):
        return _hands_on(node.slice)
    if isinstance(node, ast.Constant):
        return node.value in ("attrs", "evidence")
    return isinstance(node, ast.Attribute) and node.attr in ("attrs", "evidence")


def _bound(name: str, nodes: Iterable[ast.AST]) -> Iterator[ast.expr]:
    """What these statements assign to a name, element by element where both sides are tuples."""
    nodes = list(nodes)
    tables = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _matched(name, target, node.value)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            yield from _matched(name, node.target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            for row in _rows(node.iter, tables):
                yield from _matched(name, node.target, row)


def _rows(node: ast.expr, tables: Mapping[str, ast.Dict]) -> list[ast.expr]:
    """What a loop goes through, where it stands there: `for key in ("a", "b")`, `for key, value in table.items()`."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return node.elts
    if isinstance(node, ast.Call) and _called(node) == "items" and _receiver(node) in tables:
        table = tables[_receiver(node)]
        pairs = zip(table.keys, table.values, strict=True)
        return [ast.Tuple([key, value], ast.Load()) for key, value in pairs if key is not None]
    return []


def _matched(name: str, target: ast.expr, value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif isinstance(target, ast.Tuple):
        values = [value]
        if isinstance(value, ast.IfExp):
            values = [value.body, value.orelse]
        for one in values:
            if isinstance(one, ast.Tuple) and len(one.elts) == len(target.elts):
                for inner, part in zip(target.elts, one.elts, strict=True):
                    yield from _matched(name, inner, part)


def read(witness: str) -> Witness:
    """The witness with this name, as its code stands."""
    files: list[Path] = []
    for part in WITNESSES[witness]:
        path = PACKAGE / part
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return Witness(files)
