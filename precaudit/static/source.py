"""One source file: decoded as Python would, parsed by LibCST, positions computed only when something is reported."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata.position_provider import PositionProvidingCodegenState

from precaudit.static.segments import reduce


class SourceError(Exception):
    """A file that is not Python source as this parser knows it; `str()` is "line:column: reason" or a reason."""


class Source:
    """The text and the tree of a file. `path` is as the user wrote it; `shorten` leaves out what cannot matter."""

    def __init__(self, path: str, text: str, file: Path | None = None, shorten: bool = False) -> None:
        self.path = path
        self.text = text
        self.file = file
        self._positions: dict[Any, Any] | None = None
        self._reduced = reduce(text) if shorten else None
        self.tree: cst.Module = self._parse()

    def _parse(self) -> cst.Module:
        if self._reduced is not None:
            try:
                return parse(self._reduced.text)
            except SourceError:
                # What looked like a definition stood inside a string, or the file does not parse anyway.
                self._reduced = None
        return parse(self.text)

    def line(self, line: int) -> int:
        """The line of the file that a line of the tree is."""
        return line if self._reduced is None else self._reduced.original(line)

    @property
    def file_folder(self) -> Path | None:
        """Where the file is on disk; None for standard input."""
        return self.file.parent if self.file is not None else None

    @property
    def positions(self) -> dict[Any, Any]:
        """Node -> CodeRange (lines from 1, columns from 0), from one code generation of the whole file."""
        if self._positions is None:
            self._positions = _positions(self.tree)
        return self._positions


class _Recorder:
    """Stands in for LibCST's provider, which would copy the tree first."""

    def __init__(self) -> None:
        self._computed: dict[Any, Any] = {}


def _positions(tree: cst.Module) -> dict[Any, Any]:
    recorder = _Recorder()
    state = PositionProvidingCodegenState(
        default_indent=tree.default_indent,
        default_newline=tree.default_newline,
        provider=recorder,  # type: ignore[arg-type]
    )
    tree._codegen(state)
    return recorder._computed


def decode(raw: bytes) -> str:
    """The text of a source file by its PEP 263 encoding and byte order mark. Raises SourceError."""
    if b"\0" in raw:
        raise SourceError("source code cannot contain null bytes")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return io.TextIOWrapper(io.BytesIO(raw), encoding, newline="").read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else f"not {getattr(error, 'encoding', 'decodable')} text"
        raise SourceError(str(reason)) from None


MAX_BRACKETS = 200
"""CPython refuses deeper nesting too; LibCST's parser overflows the stack somewhere beyond."""
MAX_CHAIN = re.compile(r"(?:\.[A-Za-z_]\w*(?:\(\))?){400}|(?:\s*[\w.]+\s*[-+*|&]){2500}")
"""Chains on which LibCST's parser takes quadratic time."""


def nested_too_deeply(text: str) -> bool:
    """Whether brackets or chains go deeper than any parser of Python should be asked to follow."""
    depth = 0
    for bracket in re.finditer(r"[()\[\]{}]", text) if len(text) > MAX_BRACKETS else ():
        depth = depth + 1 if bracket[0] in "([{" else max(depth - 1, 0)
        if depth > MAX_BRACKETS:
            return True
    return len(text) > 1200 and MAX_CHAIN.search(text) is not None


def parse(text: str) -> cst.Module:
    """The tree of a text. Raises SourceError with line and column, both from 1."""
    if nested_too_deeply(text):
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
    return Source(shown, decode(path.read_bytes()), path.resolve())
