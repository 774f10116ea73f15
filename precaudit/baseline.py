"""Findings accepted once: kept by what they are and where in the code's structure, never by line number."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precaudit.disk import read, read_text, write_named
from precaudit.errors import ConfigError, OutputError
from precaudit.foreign import ForeignError, parse_json
from precaudit.notebook import ENDING, Notebook, NotebookError

DEFAULT_NAME = ".precaudit-baseline.json"
FORMAT = 1
"""1: the first published format."""


class Entry(NamedTuple):
    """One accepted finding. `number` tells equal statements of one function apart."""

    rule: str
    path: str
    function: str
    statement: str
    number: int

    @property
    def key(self) -> str:
        return hashlib.sha256("\0".join(map(str, self)).encode()).hexdigest()[:20]


class Places:
    """Finds the enclosing function and the statement of a line, by the file's own text."""

    def __init__(self, text: str, notebook: Notebook | None = None) -> None:
        self._notebook = notebook
        self._lines = text.splitlines()
        self._spans: list[tuple[int, int, str, bool]] = []
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):
            self._collect(ast.parse(text), "")

    def _collect(self, node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.stmt):
                body = getattr(child, "body", None)
                compound = isinstance(body, list) and bool(body)
                last = body[0].lineno - 1 if body and compound else child.end_lineno or child.lineno
                self._spans.append((child.lineno, max(last, child.lineno), inner if compound else name, compound))
            self._collect(child, inner)

    def find(self, line: int, cell: int | None = None) -> tuple[str, str]:
        """(qualified name, statement with its white space and comments normalised)."""
        if self._notebook is not None and cell is not None:
            line = self._notebook.line(cell, line)
        best = None
        for first, last, name, _ in self._spans:
            if first <= line <= last and (best is None or last - first <= best[1] - best[0]):
                best = (first, last, name)
        if best is None:
            text = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
            return "", _normalised(text)
        return best[2], _normalised("\n".join(self._lines[best[0] - 1 : best[1]]))


def _text_of(path: Path) -> tuple[str, Notebook | None]:
    """The Python text of a file; of a notebook that of its cells."""
    if path.suffix == ENDING:
        with contextlib.suppress(NotebookError):
            notebook = Notebook(read(path))
            return notebook.text, notebook
    return read(path).decode("utf-8", "replace"), None


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"(?m)(?<!['\"])#.*$", "", text)).strip()


def entries(findings: Sequence[Any], root: Path) -> list[Entry]:
    """A baseline entry for each finding (an object with rule, path, line), in the same order."""
    places: dict[str, Places] = {}
    seen: Counter[tuple[str, str, str, str]] = Counter()
    result = []
    for finding in findings:
        path = finding.path or ""
        if path not in places:
            try:
                places[path] = Places(*_text_of(Path(path)))
            except OSError:
                places[path] = Places("")
        function, statement = places[path].find(finding.line or 0, finding.cell)
        where = (finding.rule, relative(path, root), function, statement)
        result.append(Entry(*where, seen[where]))
        seen[where] += 1
    return result


def relative(path: str, root: Path) -> str:
    """A path as the baseline spells it: from its own folder, with forward slashes."""
    try:
        return Path(path).resolve().relative_to(root.resolve()).as_posix()
    except (ValueError, OSError):
        return Path(path).as_posix()


def load(path: Path) -> dict[str, Entry]:
    """The accepted findings by key. Raises ConfigError for a file that is no baseline."""
    try:
        raw = parse_json(read_text(path))
        if raw["format"] != FORMAT:
            raise ConfigError(f'{path}: baseline format {raw["format"]} is not known; run "precaudit baseline" anew')
        found = [Entry(e["rule"], e["path"], e["function"], e["statement"], e["number"]) for e in raw["findings"]]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ForeignError, ValueError, KeyError, TypeError):
        raise ConfigError(f'{path}: not a baseline; write one with "precaudit baseline"') from None
    return {entry.key: entry for entry in found}


def save(path: Path, accepted: Iterable[Entry]) -> None:
    """Writes a baseline that reads well in review: sorted, one finding per line. Raises OutputError."""
    lines = [json.dumps(entry._asdict(), ensure_ascii=False) for entry in sorted(set(accepted))]
    body = ",\n  ".join(lines)
    text = (
        f'{{"format": {FORMAT}, "findings": [\n  {body}\n]}}\n'
        if lines
        else f'{{"format": {FORMAT}, "findings": []}}\n'
    )
    try:
        write_named(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; choose another place with --output") from None
