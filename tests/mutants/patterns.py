"""Finds code that has a shape and writes another in its place: `X_.float()` becomes `X_`.

A shape is Python in which names like `X_` or `MODEL_` stand for any expression, `*REST_` for all other arguments, and
`GAP_` on a line of its own for any number of statements. What a name stands for is the same wherever it appears. Names
whose word is a role (`MODEL_`, `OPT_`, `SCALER_`, `LOSS_`, `EMA_`) stand only for what plays that role in the program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import libcst as cst

Bound = dict[str, Any]
"""What each name of a shape stands for: a node, a list of arguments, or a list of statements."""

HOLE = re.compile(r"^([A-Z]+)\d*_$")
ROLES = ("MODEL", "OPT", "SCALER", "LOSS", "EMA")
BETWEEN = ("GAP", "BODY")
"""Names that stand for statements: any number of them, and at least one."""
LAYOUT = (
    cst.BaseParenthesizableWhitespace,
    cst.TrailingWhitespace,
    cst.EmptyLine,
    cst.Newline,
    cst.Comment,
    cst.Comma,
    cst.Semicolon,
    cst.LeftParen,
    cst.RightParen,
    cst.LeftSquareBracket,
    cst.RightSquareBracket,
    cst.Dot,
    cst.AssignEqual,
)
NAMED = (cst.Name, cst.Attribute)
LOOSE = (cst.BinaryOperation, cst.UnaryOperation, cst.Comparison, cst.BooleanOperation, cst.IfExp, cst.Lambda)
"""What needs parentheses where it is put in place of a name."""


@dataclass(frozen=True)
class Shape:
    """One piece of Python with holes, as an expression or as statements."""

    text: str
    as_statements: bool = False

    @cached_property
    def expression(self) -> cst.BaseExpression | None:
        """The shape as an expression; None where it is statements."""
        if self.as_statements:
            return None
        try:
            return cst.parse_expression(self.text)
        except cst.ParserSyntaxError:
            return None

    @cached_property
    def roles(self) -> set[str]:
        """The holes of the shape that stand for what plays a role."""
        return {name for name in re.findall(r"\b[A-Z]+\d*_\b", self.text) if word(name) in ROLES}

    @cached_property
    def words(self) -> set[str]:
        """The words that code of this shape cannot be without."""
        return {found for found in re.findall(r"[A-Za-z_]\w*", self.text) if not HOLE.match(found)}

    @cached_property
    def statements(self) -> list[Any]:
        return list(cst.parse_module(self.text + "\n").body)


def hole(node: Any) -> str:
    """The name of the hole that this node is, "" of any other node."""
    return node.value if isinstance(node, cst.Name) and HOLE.match(node.value) else ""


def word(name: str) -> str:
    """`MODEL` of `MODEL2_`."""
    found = HOLE.match(name)
    return found[1] if found else ""


def statement_hole(node: Any) -> str:
    """The name of the hole for statements that stands alone on this line."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1 and isinstance(node.body[0], cst.Expr):
        name = hole(node.body[0].value)
        return name if word(name) in BETWEEN else ""
    return ""


def code(node: Any) -> str:
    """The source of a node without parentheses around it."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, list):
        return "\n".join(code(part) for part in node)
    if hasattr(node, "lpar") and node.lpar and not isinstance(node, (cst.Tuple, cst.GeneratorExp)):
        node = node.with_changes(lpar=[], rpar=[])
    return cst.Module([]).code_for_node(node)


@dataclass(frozen=True)
class Matcher:
    """Holds code against shapes, with what plays each role in the program and which words a name must contain."""

    roles: Mapping[str, frozenset[str]]
    names: Mapping[str, str]

    def match(self, shape: Any, node: Any, bound: Bound) -> Bound | None:
        """What the holes stand for, with what they stood for before; None where the shape does not fit."""
        if name := hole(shape):
            return self._bind(name, node, bound)
        if type(shape) is not type(node):
            return None
        if isinstance(shape, cst.SimpleString):
            return bound if shape.evaluated_value == node.evaluated_value else None
        if isinstance(shape, (cst.Name, cst.Integer, cst.Float)):
            return bound if shape.value == node.value else None
        if isinstance(shape, cst.Call):
            found = self.match(shape.func, node.func, bound)
            return None if found is None else self._arguments(shape.args, node.args, found)
        if isinstance(shape, cst.IndentedBlock):
            found_all = next(self.sequences(shape.body, node.body, bound, whole=True), None)
            return found_all[0] if found_all else None
        ours, theirs = _parts(shape), _parts(node)
        if len(ours) != len(theirs):
            return None
        found = bound
        for one, other in zip(ours, theirs, strict=True):
            found = self.match(one, other, found)
            if found is None:
                return None
        return found

    def sequences(
        self, shape: Sequence[Any], body: Sequence[Any], bound: Bound, *, whole: bool = False
    ) -> Iterator[tuple[Bound, int]]:
        """Each way in which the statements of a shape fit the beginning of a body, and how many of it they take."""
        if not shape:
            if not whole or not body:
                yield bound, 0
            return
        if name := statement_hole(shape[0]):
            for taken in range(1 if word(name) == "BODY" else 0, len(body) + 1):
                for found, more in self.sequences(
                    shape[1:], body[taken:], {**bound, name: list(body[:taken])}, whole=whole
                ):
                    yield found, taken + more
        elif body:
            first = self.match(shape[0], body[0], bound)
            if first is not None:
                for found, more in self.sequences(shape[1:], body[1:], first, whole=whole):
                    yield found, 1 + more

    def _bind(self, name: str, node: Any, bound: Bound) -> Bound | None:
        if not isinstance(node, cst.BaseExpression):
            return None
        kind = word(name)
        if name in bound:
            return bound if code(bound[name]) == code(node) else None
        if kind in ROLES and (not isinstance(node, NAMED) or code(node) not in self.roles.get(kind, ())):
            return None
        if kind == "NUM" and not isinstance(node, (cst.Integer, cst.Float)):
            return None
        if kind == "NAME" and not isinstance(node, (*NAMED, cst.Subscript)):
            return None
        wanted = self.names.get(name)
        if wanted is not None and not re.search(wanted, code(node)):
            return None
        return {**bound, name: node}

    def _arguments(self, shapes: Sequence[cst.Arg], given: Sequence[cst.Arg], bound: Bound) -> Bound | None:
        left, rest = list(given), ""
        for shape in shapes:
            if shape.star == "*" and hole(shape.value):
                rest = hole(shape.value)
                continue
            keyword = shape.keyword.value if shape.keyword else None
            fits = [a for a in left if (a.keyword.value if a.keyword else None) == keyword and a.star == shape.star]
            if not fits or (keyword is None and fits[0] is not left[0]):
                return None
            left.remove(fits[0])
            found = self.match(shape.value, fits[0].value, bound)
            if found is None:
                return None
            bound = found
        if rest:
            return {**bound, rest: left}
        return bound if not left else None


def _parts(node: cst.CSTNode) -> list[cst.CSTNode]:
    return [part for part in node.children if not isinstance(part, LAYOUT)]


class _Fill(cst.CSTTransformer):
    """Puts what the holes stand for into a shape."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> Any:
        node = self.bound.get(hole(original_node))
        if node is None or isinstance(node, list):
            return updated_node
        node = node.deep_clone()
        if isinstance(node, LOOSE) and not node.lpar:
            node = node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        return node

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        args: list[cst.Arg] = []
        for arg in updated_node.args:
            rest = self.bound.get(hole(arg.value)) if arg.star == "*" else None
            if isinstance(rest, list):
                args += [a.deep_clone() for a in rest]
            else:
                args.append(arg)
        args.sort(key=lambda a: a.keyword is not None)
        return updated_node.with_changes(args=[a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in args])

    def leave_SimpleStatementLine(self, original_node: Any, updated_node: Any) -> Any:
        if name := statement_hole(original_node):
            return cst.FlattenSentinel([part.deep_clone() for part in self.bound.get(name, [])])
        return updated_node


def fill(shape: Shape, bound: Bound) -> Any:
    """A shape with its holes filled: an expression, or a list of statements."""
    if shape.expression is not None:
        return shape.expression.visit(_Fill(bound))
    filled = cst.Module(shape.statements).visit(_Fill(bound))
    return list(filled.body)


@dataclass(frozen=True)
class Place:
    """Where a shape fits: an expression, or `taken` statements of a block from `at` on; what the holes stand for."""

    node: Any
    bound: Bound
    at: int = 0
    taken: int = 0

    def rewritten(self, module: cst.Module, put: Shape) -> cst.Module:
        """The module with this place written anew."""
        if not self.taken:
            return module.deep_replace(self.node, fill(put, self.bound))  # type: ignore[return-value]
        new = fill(Shape(put.text, as_statements=True), self.bound)
        body = [*self.node.body[: self.at], *new, *self.node.body[self.at + self.taken :]]
        changed = self.node.with_changes(body=body or list(cst.parse_module("pass\n").body))
        return changed if self.node is module else module.deep_replace(self.node, changed)


def places(module: cst.Module, find: Shape, put: Shape, matcher: Matcher, bound: Bound) -> Iterator[Place]:
    """Every place that fits `find`, in the order of the source.

    A role that only `put` names stands for each name that plays it: the program's own run shows which of them fit.
    """
    if not find.words <= words_of(module):
        return
    open_roles = put.roles - find.roles - set(bound)
    if open_roles:
        name = min(open_roles)
        for candidate in sorted(matcher.roles[word(name)]):
            yield from places(module, find, put, matcher, {**bound, name: cst.parse_expression(candidate)})
    elif find.expression is not None and put.expression is not None:
        for node in _nodes(module):
            found = matcher.match(find.expression, node, bound) if type(node) is type(find.expression) else None
            if found is not None:
                yield Place(node, found)
    else:
        for block in _nodes(module):
            if isinstance(block, (cst.Module, cst.IndentedBlock)):
                for at in range(len(block.body)):
                    for found, taken in matcher.sequences(find.statements, block.body[at:], bound):
                        yield Place(block, found, at, taken)
                        break


@functools.lru_cache(maxsize=64)
def parsed(text: str) -> cst.Module:
    """The module of a text, parsed once."""
    return cst.parse_module(text)


@functools.lru_cache(maxsize=64)
def words_of(module: cst.Module) -> set[str]:
    """Every word in a module's text."""
    return set(re.findall(r"[A-Za-z_]\w*", module.code))


@functools.lru_cache(maxsize=64)
def _nodes(module: cst.Module) -> list[cst.CSTNode]:
    """All nodes of a module, in the order of the source."""
    found: list[cst.CSTNode] = []
    stack: list[cst.CSTNode] = [module]
    while stack:
        node = stack.pop()
        if not isinstance(node, LAYOUT):
            found.append(node)
            stack += reversed(node.children)
    return found
