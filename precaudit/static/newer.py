"""Source that this Python is too old for: LibCST parses it, and its nodes become those that check walks."""

from __future__ import annotations

from typing import Any

import libcst
from libcst.metadata import MetadataWrapper, PositionProvider

from precaudit.static import nodes

RENAMED = {"IndentedBlock": "Suite", "SimpleStatementSuite": "Suite", "Finally": "Else"}
SIGNS = {type(sign).__name__: sign for sign in (*nodes.SIGNS.values(), *nodes.ASSIGNING.values())}


def parse(text: str) -> nodes.Module | None:
    """The tree of a text; None where LibCST does not know it either."""
    try:
        wrapper = MetadataWrapper(libcst.parse_module(text), unsafe_skip_copy=True)
        places = wrapper.resolve(PositionProvider)
        return nodes.Module(None, _Reader(text, places).node(wrapper.module.body))
    except (libcst.ParserSyntaxError, RecursionError, ValueError):
        return None


class _Reader:
    """Makes nodes of LibCST's, field by field: they have the same names."""

    def __init__(self, text: str, places: Any) -> None:
        self._lines = text.splitlines()
        self._places = places

    def node(self, made: Any) -> Any:
        if isinstance(made, (list, tuple)):
            return tuple(map(self.node, made))
        if isinstance(made, (libcst.MaybeSentinel, libcst.ParamStar)):
            return None
        if not isinstance(made, libcst.CSTNode):
            return made
        name, at = type(made).__name__, self._place(made)
        if name in SIGNS:
            return SIGNS[name]
        if isinstance(made, libcst.FormattedStringText):
            return nodes.FormattedStringText(at, made.value.replace("{{", "{").replace("}}", "}"))
        if isinstance(made, (libcst.SimpleString, libcst.ConcatenatedString)):
            return self._string(made, at)
        if isinstance(made, (libcst.Integer, libcst.Float)):
            return getattr(nodes, name)(at, made.evaluated_value)
        if isinstance(made, libcst.ImportFrom):
            return nodes.ImportFrom(at, self.node(made.module), self.node(made.names), len(made.relative))
        if isinstance(made, libcst.BaseSuite):
            lines = self.node(made.body)
            simple = isinstance(made, libcst.SimpleStatementSuite)
            return nodes.Suite(at, tuple(nodes.SimpleStatementLine(at, (one,)) for one in lines) if simple else lines)
        if name.startswith("Match") and not hasattr(nodes, name):
            return nodes.MatchParts(at, self.node(made.children))
        kind = getattr(nodes, RENAMED.get(name, name), nodes.Other)
        return kind(at, *(self.node(getattr(made, field)) for field in kind.fields))

    def _string(self, made: Any, at: nodes.Place) -> Any:
        value = made.evaluated_value
        return nodes.SimpleString(at, value) if value is not None else nodes.FormattedString(at, self._parts(made))

    def _parts(self, made: Any) -> list[Any]:
        """The parts of strings side by side, of which at least one is formatted; texts that touch are one."""
        if isinstance(made, libcst.ConcatenatedString):
            first, second = self._parts(made.left), self._parts(made.right)
            if first and second and all(type(part) is nodes.FormattedStringText for part in (first[-1], second[0])):
                second[0].value = first.pop().value + second[0].value
            return [*first, *second]
        if isinstance(made, libcst.SimpleString):
            return [nodes.FormattedStringText(self._place(made), made.evaluated_value)]
        return list(self.node(made.parts))

    def _place(self, made: Any) -> nodes.Place:
        found = self._places.get(made)
        if found is None:
            return nodes.Place(1, 0, 1, 0)
        start, end = found.start, found.end
        return nodes.Place(start.line, self._bytes(start), end.line, self._bytes(end))

    def _bytes(self, position: Any) -> int:
        line = self._lines[position.line - 1] if position.line <= len(self._lines) else ""
        return len(line[: position.column].encode())
