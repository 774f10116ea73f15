"""One source file: decoded as Python would, parsed by LibCST, positions computed only when something is reported."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from precaudit.disk import read
from precaudit.static.decoding import SourceError, decode, nested_too_deeply
from precaudit.static.nodes import CodeRange, PositionProvidingCodegenState, cst
from precaudit.static.outline import Outline
from precaudit.static.prefilter import code_of
from precaudit.static.relevance import live_names, relevant_names
from precaudit.static.segments import LEFT_OUT, MARK, reduce


class Source:
    """The text and the tree of a file. `path` is as the user wrote it.

    Unless it is wanted `whole`, only that is parsed to which its statements and the definitions named in `roots` lead,
    by default those that hold or call something that a finding can start from; and a body when it is asked for.
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
        self._trees = [_Tree(self.tree, self._reduced.original if self._reduced is not None else None)]
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
        first = statements[0] if statements else None
        number = _left_out(first)
        if number is None or self._reduced is None:
            return statements
        body = self._reduced.bodies[number]
        try:
            tree = parse(f"if 1:\n{body.text}", self._deep)
        except SourceError:
            self.misread = True
            return ()
        self._trees.append(_Tree(tree, lambda line: body.line + line - 2))
        return tree.body[0].body.body  # type: ignore[union-attr]

    def code(self, node: Any) -> str:
        """The text of a function or class, with the bodies that were left out of it."""
        bodies = self._reduced.bodies if self._reduced is not None else []
        return MARK.sub(lambda mark: bodies[int(mark[1])].text, self.tree.code_for_node(node))

    def place(self, node: Any) -> CodeRange | None:
        """Where in the file a node stands: lines from 1, columns from 0."""
        return next((tree.place(node) for tree in self._trees if node in tree.positions), None)

    @property
    def positions(self) -> dict[Any, CodeRange]:
        """The nodes of a file that is parsed whole, with their places."""
        return self._trees[0].positions

    @property
    def module(self) -> str:
        """The name under which others import the file."""
        return self.path.rpartition("/")[2].partition(".")[0]

    @property
    def file_folder(self) -> Path | None:
        """Where the file is on disk; None for standard input."""
        return self.file.parent if self.file is not None else None


def _left_out(statement: Any) -> int | None:
    """The number of the body that a statement stands for."""
    expression: Any = statement.body[0] if type(statement) is cst.SimpleStatementLine else None
    mark = expression.value if type(expression) is cst.Expr else None
    if type(mark) is not cst.Subscript or type(mark.value) is not cst.Name or mark.value.value != LEFT_OUT:
        return None
    index: Any = mark.slice[0].slice
    return int(index.value.value)


class _Tree:
    """A stretch of the file that was parsed, and how its lines are counted in the file."""

    def __init__(self, module: cst.Module, line: Callable[[int], int] | None) -> None:
        self._module = module
        self._line = line

    @cached_property
    def positions(self) -> dict[Any, CodeRange]:
        """Node -> place in the stretch, from one code generation of all of it."""
        return _positions(self._module)

    def place(self, node: Any) -> CodeRange:
        found = self.positions[node]
        if self._line is None:
            return found
        start, end = found.start, found.end
        return CodeRange((self._line(start.line), start.column), (self._line(end.line), end.column))


class _Recorder:
    """Stands in for LibCST's provider, which would copy the tree first."""

    def __init__(self) -> None:
        self._computed: dict[Any, Any] = {}


def _positions(tree: cst.Module) -> dict[Any, CodeRange]:
    recorder = _Recorder()
    state = PositionProvidingCodegenState(
        default_indent=tree.default_indent,
        default_newline=tree.default_newline,
        provider=recorder,  # type: ignore[arg-type]
    )
    tree._codegen(state)
    return recorder._computed


LARGEST = 2_000_000
"""Characters from which LibCST takes minutes and gigabytes; what is left of so large a file is generated code."""


def parse(text: str, maybe_deep: bool = True) -> cst.Module:
    """The tree of a text. Raises SourceError with line and column, both from 1."""
    if len(text) > LARGEST:
        size = f"{len(text) / 1e6:.1f} MB"
        raise SourceError(
            f"too large to parse: {size} of code, {LARGEST / 1e6:.0f} MB is allowed; exclude generated code"
        )
    if maybe_deep and nested_too_deeply(code_of(text)):
        raise SourceError("nested too deeply to parse")
    try:
        return cst.parse_module(text.removeprefix("\ufeff"))
    except cst.ParserSyntaxError as error:
        raise SourceError(_syntax_error(text, error)) from None
    except RecursionError:
        raise SourceError("nested too deeply to parse") from None
    except Exception as error:
        raise SourceError(f"cannot be parsed: {type(error).__name__}") from None


def _syntax_error(text: str, error: cst.ParserSyntaxError) -> str:
    """Place and reason as Python itself words them, or as LibCST does where Python would accept the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as own:
        return f"{own.lineno or 1}:{own.offset or 1}: {own.msg}"
    except (ValueError, RecursionError, MemoryError):
        pass
    reason = error.message.strip().splitlines()[0] if error.message.strip() else "syntax error"
    return f"{error.editor_line}:{error.editor_column}: {reason}"


def load(path: Path, shown: str) -> Source:
    """Reads and parses one file. Raises SourceError or OSError."""
    return Source(shown, decode(read(path)), path.resolve())
