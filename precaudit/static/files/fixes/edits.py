"""Finds syntax nodes by place and replaces stretches of text, so that formatting stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import libcst as cst

from precaudit.notebook import lines_of
from precaudit.static.source import Source


class Edit(NamedTuple):
    """Replace text[start:end] by `text`; an insertion has start == end."""

    start: int
    end: int
    text: str


class Tree:
    """A parsed text whose nodes can be found by place. Raises SourceError for a text that does not parse."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.source = Source("", text, whole=True)
        self._starts = [0]
        for line in lines_of(text):
            self._starts.append(self._starts[-1] + len(line))

    def offset(self, line: int, column: int) -> int:
        """Character offset of a place; the line counts from 1, the column from 0."""
        return self._starts[line - 1] + column

    def span(self, node: Any) -> tuple[int, int]:
        """Start and end offset of a node."""
        line, column, end_line, end_column = self.source.place(node)
        return self.offset(line, column), self.offset(end_line, end_column)

    def code(self, node: Any) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def call_at(self, line: int, column: int) -> cst.Call | None:
        """The largest call that begins at a place (line and column from 1)."""
        found = [n for n in self.nodes(cst.Call) if self._begins(n, line, column)]
        return max(found, key=lambda n: self.span(n)[1], default=None)

    def calls_on(self, line: int) -> list[cst.Call]:
        """The calls that begin on a line."""
        return [n for n in self.nodes(cst.Call) if self.source.place(n).line == line]

    def nodes(self, kind: type[Any]) -> list[Any]:
        """Every node of a kind."""
        return [node for node in self.source.nodes() if isinstance(node, kind)]

    def _begins(self, node: Any, line: int, column: int) -> bool:
        return self.source.place(node)[:2] == (line, column - 1)

    def statement_around(self, node: Any) -> cst.SimpleStatementLine | None:
        """The one-line statement that holds a node."""
        start, end = self.span(node)
        for line in self.nodes(cst.SimpleStatementLine):
            first, last = self.span(line)
            if first <= start and end <= last:
                return line  # type: ignore[no-any-return]
        return None

    def indentation(self, node: Any) -> str:
        line = self.source.place(node).line
        text = self.text[self._starts[line - 1] :]
        return text[: len(text) - len(text.lstrip(" \t"))]

    def line_start(self, node: Any) -> int:
        return self._starts[self.source.place(node).line - 1]

    def line_end(self, node: Any) -> int:
        """The offset after the line on which a node ends."""
        line = self.source.place(node).end_line
        return self._starts[min(line, len(self._starts) - 1)]

    def newline(self) -> str:
        """How the lines of the text end."""
        return self.source.tree.default_newline


def applied(text: str, edits: Sequence[Edit]) -> str:
    """The text after edits that do not overlap."""
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text
