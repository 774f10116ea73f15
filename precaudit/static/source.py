"""One source file: decoded as Python would, parsed by LibCST in pieces, each when it is asked for."""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import libcst as cst
from libcst.metadata import CodeRange, PositionProvider

from precaudit.disk import read
from precaudit.static.decoding import SourceError, decode, nested_too_deeply
from precaudit.static.reach.outline import Outline
from precaudit.static.reach.relevance import live_names, relevant_names
from precaudit.static.reach.segments import LEFT_OUT, reduce
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
    is left out leaves as many lines, so that each node knows its line in the file.
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
        self._stretches = [_Parsed(self.tree, 0)]
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
        mark = LEFT_OUT.match(_text_alone(statements[0])) if statements else None
        if mark is None or self._reduced is None:
            return statements
        body = self._reduced.left_out[int(mark[1])]
        try:
            tree = parse(f"if 1:\n{body.text}", self._deep)
            (block,) = tree.body
        except (SourceError, ValueError):
            self.misread = True
            return ()
        self._stretches.append(_Parsed(tree, body.line - 2))
        return block.body.body  # type: ignore[union-attr]

    def code(self, node: Any) -> str:
        """The text of a node, with what was left out of it; of a statement, with the comments and decorators above."""
        left_out = self._reduced.left_out if self._reduced is not None else []
        return LEFT_OUT.sub(lambda mark: left_out[int(mark[1])].text, self.tree.code_for_node(node))

    def place(self, node: Any) -> Stretch:
        """Where in the file a node stands."""
        parsed = next((each for each in self._stretches if each.holds(node)), None)
        if parsed is None:
            return Stretch(1, 0, 1, 0)
        start, end = parsed.places[node].start, parsed.places[node].end
        return Stretch(start.line + parsed.above, start.column, end.line + parsed.above, end.column)

    def nodes(self) -> Iterable[cst.CSTNode]:
        """Every node of a file that is parsed whole."""
        return self._stretches[0].places

    @property
    def module(self) -> str:
        """The name under which others import the file."""
        return self.path.rpartition("/")[2].partition(".")[0]

    @property
    def file_folder(self) -> Path | None:
        """Where the file is on disk; None for standard input."""
        return self.file.parent if self.file is not None else None


class _Parsed:
    """A stretch of a file with a tree of its own, and how many lines of the file stand above the tree's."""

    def __init__(self, tree: cst.Module, above: int) -> None:
        self._tree = tree
        self.above = above

    @cached_property
    def places(self) -> Mapping[cst.CSTNode, CodeRange]:
        """Node -> place in the stretch. LibCST finds them by writing all out, twelve times the work of `holds`."""
        return _Places().of(self._tree)

    def holds(self, node: Any) -> bool:
        """Whether a node stands in the stretch."""
        if "places" in self.__dict__:
            return node in self.places
        waiting: list[Any] = [self._tree]
        while waiting:
            found = waiting.pop()
            if found is node:
                return True
            if isinstance(found, cst.CSTNode):
                waiting += [getattr(found, name) for name in _fields(type(found))]
            elif isinstance(found, (list, tuple)):
                waiting += found
        return False


class _Places(PositionProvider):
    """LibCST's places, without the second walk of the tree that its MetadataWrapper takes for nothing."""

    def of(self, tree: cst.Module) -> Mapping[cst.CSTNode, CodeRange]:
        self._computed = {}
        self._gen_impl(tree)
        return cast("Mapping[cst.CSTNode, CodeRange]", self._computed)


@cache
def _fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    """The names of what a kind of node is made of, without the space between."""
    return tuple(field.name for field in dataclasses.fields(kind) if "whitespace" not in field.name)


def _text_alone(statement: Any) -> str:
    """The string that a statement consists of, as it is written; empty for any other."""
    expression = statement.body[0] if type(statement) is cst.SimpleStatementLine else None
    text = expression.value if type(expression) is cst.Expr else None
    return text.value if type(text) is cst.SimpleString else ""


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
        return cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise SourceError(_refusal(text, error)) from None
    except RecursionError:
        raise SourceError("nested too deeply to parse") from None
    except Exception as error:  # LibCST says of some mistakes only that something was wrong
        raise SourceError(f"cannot be parsed: {type(error).__name__}") from None


def _refusal(text: str, error: cst.ParserSyntaxError) -> str:
    """Place and reason as Python words them; where Python takes the text, that LibCST does not know it yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as own:
        return f"{own.lineno or 1}:{own.offset or 1}: {own.msg}"
    except (ValueError, RecursionError, MemoryError):
        pass
    known = version("libcst")
    return f"LibCST {known} does not know the syntax near line {error.raw_line}; update it (pip install -U libcst)"


def load(path: Path, shown: str) -> Source:
    """Reads and parses one file. Raises SourceError or OSError."""
    return Source(shown, decode(read(path)), path.resolve())
