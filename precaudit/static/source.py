"""One source file: decoded as Python would, parsed in pieces, each when it is asked for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from precaudit.disk import read
from precaudit.static import nodes as cst
from precaudit.static.decoding import SourceError, decode, nested_too_deeply
from precaudit.static.reach.outline import Outline
from precaudit.static.reach.relevance import live_names, relevant_names
from precaudit.static.reach.segments import reduce
from precaudit.static.reach.words import code_of


class Stretch(NamedTuple):
    """Where something stands in a file: lines from 1, columns in characters from 0."""

    line: int
    column: int
    end_line: int
    end_column: int


class Source:
    """The text and the tree of a file. `path` is as the user wrote it.

    Unless it is wanted `whole`, only that is parsed to which its statements and the definitions named in `roots` lead,
    by default those that hold or call something that a finding can start from; and a body when it is asked for. What
    is left out leaves its lines blank, so that each node knows its line in the file.
    """

    def __init__(
        self, path: str, text: str, file: Path | None = None, roots: Iterable[str] | None = None, whole: bool = False
    ) -> None:
        self.path = path
        self.text = text
        self.file = file
        outline = Outline(text)
        self._deep = nested_too_deeply(outline.code)
        """Each stretch has to be asked whether it is what goes too deep."""
        self.relevant = relevant_names(outline)
        """The functions and classes that are worth running with arguments about which nothing is known."""
        self.live = live_names(outline)
        """Those in which something low can begin, where a run may ignore calls that do not lead there."""
        self._reduced = None if whole else reduce(text, outline, self.relevant if roots is None else roots)
        self.tree: cst.Module = self._parse()
        self.misread = False
        """A body did not parse: the file is at fault, or was divided where it should not have been."""
        self._bodies: dict[cst.FunctionDef, Sequence[Any]] = {}

    def _parse(self) -> cst.Module:
        if self._reduced is not None:
            try:
                return parse(self._reduced.text, self._deep)
            except SourceError:
                self._reduced = None
        return parse(self.text, self._deep)

    def body(self, function: cst.FunctionDef) -> Sequence[Any]:
        """The statements of a function."""
        found = self._bodies.get(function)
        if found is None:
            found = self._bodies[function] = self._body(function.body.body)
        return found

    def _body(self, statements: Sequence[Any]) -> Sequence[Any]:
        line = statements[0].at.lineno if statements else 0
        text = self._reduced.bodies.get(line) if self._reduced is not None else None
        if text is None:
            return statements
        try:
            (block,) = parse("\n" * (line - 2) + f"if 1:\n{text}", self._deep).body
        except (SourceError, ValueError):
            self.misread = True
            return ()
        return block.body.body  # type: ignore[no-any-return]

    def code(self, node: Any) -> str:
        """The text of a node; of a function or class, with its decorators."""
        at = node.at
        first = min([at, *getattr(at, "decorator_list", ())], key=lambda each: each.lineno)
        start = first.col_offset - (first is not at)
        lines = self._lines[first.lineno - 1 : at.end_lineno]
        if not lines:
            return ""
        lines[-1] = lines[-1][: at.end_col_offset]
        lines[0] = lines[0][start:]
        text = b"".join(lines).decode("utf-8", "replace")
        bodies = self._reduced.bodies if self._reduced is not None and at.lineno < at.end_lineno else {}
        left_out = bodies.get(at.end_lineno or 0) if isinstance(at, NAMED) else None
        return text if left_out is None else text[: text.rindex("\n") + 1] + left_out

    def place(self, node: Any) -> Stretch:
        """Where in the file a node stands; of the name in a definition or before `=`, the name."""
        at = node.at
        if type(node) is cst.Name and isinstance(at, NAMED):
            line = self._lines[at.lineno - 1].decode("utf-8", "replace")
            found = re.compile(rf"\b{re.escape(node.value)}\b").search(line, at.col_offset)
            if found is not None:
                return Stretch(at.lineno, found.start(), at.lineno, found.end())
        start, end = self._column(at.lineno, at.col_offset), self._column(at.end_lineno, at.end_col_offset)
        return Stretch(at.lineno, start, at.end_lineno, end)

    def _column(self, line: int, offset: int) -> int:
        """The column in characters of one in bytes."""
        found = self._lines[line - 1 : line]
        return len(found[0][:offset].decode("utf-8", "replace")) if found else offset

    @cached_property
    def _lines(self) -> list[bytes]:
        return self.text.encode("utf-8", "replace").splitlines(keepends=True)

    @property
    def module(self) -> str:
        """The name under which others import the file."""
        return self.path.rpartition("/")[2].partition(".")[0]

    @property
    def file_folder(self) -> Path | None:
        """Where the file is on disk; None for standard input."""
        return self.file.parent if self.file is not None else None


NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.keyword)
"""What has a name that is no expression of its own."""
LARGEST = 2_000_000
"""Characters; what is left of so large a file is generated code."""


def parse(text: str, maybe_deep: bool = True) -> cst.Module:
    """The tree of a text. Raises SourceError with line and column, both from 1."""
    if len(text) > LARGEST:
        size = f"{len(text) / 1e6:.1f} MB"
        raise SourceError(
            f"too large to parse: {size} of code, {LARGEST / 1e6:.0f} MB is allowed; exclude generated code"
        )
    if maybe_deep and nested_too_deeply(code_of(text)):
        raise SourceError("nested too deeply to parse")
    text = text.removeprefix("\ufeff")
    try:
        return cst.parse(text)
    except SyntaxError as error:
        from precaudit.static import newer  # LibCST's import takes longer than most files

        tree = newer.parse(text)
        if tree is None:
            raise SourceError(f"{error.lineno or 1}:{error.offset or 1}: {error.msg}") from None
        return tree
    except RecursionError:
        raise SourceError("nested too deeply to parse") from None
    except MemoryError:  # CPython's parser says so of its own stack too
        raise SourceError("nested too deeply to parse, or more code than --file-memory allows") from None
    except ValueError as error:
        raise SourceError(f"cannot be parsed: {type(error).__name__}") from None


def load(path: Path, shown: str) -> Source:
    """Reads and parses one file. Raises SourceError or OSError."""
    return Source(shown, decode(read(path)), path.resolve())
