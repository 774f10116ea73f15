"""Reads Jupyter notebooks: their code cells as one Python text, and back from its lines to cells and to the file's."""

from __future__ import annotations

import difflib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ENDING = ".ipynb"
CELL_MAGICS_WITH_PYTHON = frozenset({"capture", "memit", "prun", "python", "python3", "time", "timeit"})
"""The rest of such a cell is Python that runs here; that of others (%%bash, %%writefile) is not."""
MAGIC = re.compile(r"[ \t]*(?:%|!|\?)|[ \t]*[\w.%]+\?\??[ \t]*$")
"""A line that IPython takes for itself, where a statement could begin: `%cd x`, `!pip install y`, `model?`."""
AUTOMAGIC = re.compile(r"(?:cat|cd|conda|cp|less|ll|ls|man|mkdir|more|mv|pip|rm|rmdir)[ \t]+[^\s=]")
"""What IPython takes for a command without a sign before it, where it is no Python: `ls ./checkpoints/`."""
ASSIGNED_MAGIC = re.compile(r"([ \t]*[\w., \t]+=[ \t]*)(?:%|!)")
"""`files = !ls`: what the name holds then is not known."""
LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
PIECES = re.compile(
    r"(?P<long>(?s:\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)))"
    r"|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|#[^\n]*|(?P<open>[(\[{])|(?P<close>[)\]}])"
)


def lines_of(text: str) -> list[str]:
    """The lines of a text as Python counts them, ends kept; `splitlines` would divide at form feeds too."""
    return LINE.findall(text)


def place(firsts: Sequence[Sequence[int]], line: int) -> tuple[int, int]:
    """(cell, line in it) of a line of a notebook's text, from what `Notebook.firsts` gave."""
    first, number = firsts[max(bisect_right([one[0] for one in firsts], line) - 1, 0)]
    return number, max(line - first + 1, 1)


class NotebookError(Exception):
    """A file that is no notebook, or one in another language; `str()` says which."""


class Span(NamedTuple):
    """Where a JSON value stands in the file's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One code cell. `number` counts all cells of the notebook, from 1, as editors do."""

    number: int
    lines: tuple[str, ...]
    """Its source as the author wrote it, newlines kept."""
    value: Span
    """Its whole `source` value."""
    items: tuple[Span, ...]
    """The strings of a `source` list, one for each line; empty where it is written otherwise."""
    code: str
    """Its source as Python: what belongs to IPython is blanked, line by line."""


class Notebook:
    """A notebook's code as one text. Raises NotebookError.

    `text` has every code cell in order, each below a comment with its number.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        try:
            self.file = raw.decode("utf-8-sig")
            self.cells = list(_cells(self.file))
        except UnicodeDecodeError:
            raise NotebookError("not UTF-8 text") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise NotebookError("not a notebook: no list of cells in JSON (nbformat 4)") from None
        self._firsts: list[int] = []
        parts: list[str] = []
        line = 1
        for cell in self.cells:
            self._firsts.append(line + 1)
            code = cell.code if cell.code.endswith("\n") or not cell.code else cell.code + "\n"
            parts.append(f"{_heading(cell.number)}\n{code}")
            line += 1 + code.count("\n")
        self.text = "".join(parts)

    def line(self, cell: int, line: int) -> int:
        """The line of `text` that a cell's line is; 0 where there is no such cell."""
        numbers = [one.number for one in self.cells]
        return self._firsts[numbers.index(cell)] + line - 1 if cell in numbers else 0

    def firsts(self) -> list[list[int]]:
        """[line of `text` with which a cell begins, its number] of each code cell."""
        return [[first, cell.number] for first, cell in zip(self._firsts, self.cells, strict=True)]

    def codes(self) -> Iterator[tuple[int, str]]:
        """(cell, its Python)."""
        return ((cell.number, cell.code) for cell in self.cells)

    def without(self, number: int, text: str) -> str:
        """`text` with the lines of one cell blanked."""
        at = [cell.number for cell in self.cells].index(number)
        lines = text.split("\n")
        first = self._firsts[at] - 1
        for line in range(first, first + len(lines_of(self.cells[at].code))):
            lines[line] = ""
        return "\n".join(lines)

    def in_file(self, cell: int, line: int, column: int = 1) -> tuple[int, int]:
        """(line, column) in the .ipynb file itself, for services that know nothing of cells."""
        found = next((one for one in self.cells if one.number == cell), None)
        if found is None:
            return 1, 1
        at = found.value.start
        if 0 < line <= len(found.items):
            at = found.items[line - 1].start
            before = found.lines[line - 1][: column - 1]
            at += 1 + len(json.dumps(before, ensure_ascii=self.file.isascii())) - 2
        start = self.file.rfind("\n", 0, at) + 1
        return self.file.count("\n", 0, at) + 1, at - start + 1

    def changed(self, text: str) -> tuple[bytes, list[tuple[int, list[str], list[str]]]]:
        """The file after `text` was edited, and (cell, its old lines, its new lines) for each cell that changed.

        Nothing but the `source` of those cells differs from the file as it was, and of those only edited lines.
        """
        file, done = self.file, []
        parts = _split(text, [_heading(cell.number) for cell in self.cells])
        for cell, code in reversed(list(zip(self.cells, parts, strict=True))):
            old, new = lines_of(cell.code), lines_of(code)
            if new and cell.code and not cell.code.endswith("\n"):
                new[-1] = new[-1].removesuffix("\n")
            if old == new:
                continue
            written, kept = _edited(cell, old, new)
            file = file[: cell.value.start] + self._json(cell, written, kept) + file[cell.value.end :]
            done.append((cell.number, list(cell.lines), written))
        mark = b"\xef\xbb\xbf" if self.raw.startswith(b"\xef\xbb\xbf") else b""
        return mark + file.encode("utf-8"), done[::-1]

    def _json(self, cell: Cell, lines: Sequence[str], kept: Sequence[int | None]) -> str:
        """A `source` value with these lines, in the layout of the one it replaces."""
        file, escaped = self.file, self.file.isascii()
        whole = file[cell.value.start : cell.value.end]
        if not whole.startswith("["):
            return json.dumps("".join(lines), ensure_ascii=escaped)
        spans = cell.items
        lead = file[cell.value.start : spans[0].start] if spans else "["
        between = file[spans[0].end : spans[1].start] if len(spans) > 1 else "," + lead[1:]
        tail = file[spans[-1].end : cell.value.end] if spans else "]"
        items = [
            file[spans[at].start : spans[at].end]
            if at is not None and spans
            else json.dumps(line, ensure_ascii=escaped)
            for line, at in zip(lines, kept, strict=True)
        ]
        return lead + between.join(items) + tail


def _heading(number: int) -> str:
    return f"# %% cell {number}"


def _split(text: str, headings: Sequence[str]) -> list[str]:
    """What stands below each heading."""
    parts = []
    for at, heading in enumerate(headings):
        start = text.index(f"{heading}\n") + len(heading) + 1
        end = text.index(f"{headings[at + 1]}\n", start) if at + 1 < len(headings) else len(text)
        parts.append(text[start:end])
    return parts


def _edited(cell: Cell, old: Sequence[str], new: Sequence[str]) -> tuple[list[str], list[int | None]]:
    """The author's lines with the edits made to the Python of a cell, and which of the old lines each still is."""
    lines: list[str] = []
    kept: list[int | None] = []
    for what, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            lines += cell.lines[i:j]
            kept += range(i, j)
        else:
            lines += new[k:m]
            kept += [None] * (m - k)
    return lines, kept


def _cells(file: str) -> Iterator[Cell]:
    """The code cells of a notebook's JSON, in order. Raises ValueError and its like for any other text."""
    whole = json.loads(file)
    language = _language(whole)
    if language not in ("", "python", "ipython"):
        raise NotebookError(f"a notebook in {language}, not in Python")
    if not isinstance(whole["cells"], list):
        raise ValueError
    (cells,) = (span for key, span in _members(file, _skip(file, 0)) if key == "cells")
    for number, (cell, span) in enumerate(zip(whole["cells"], _elements(file, cells.start), strict=True), 1):
        if cell.get("cell_type") != "code":
            continue
        written = cell["source"]
        source = next(value for key, value in _members(file, span.start) if key == "source")
        lines = tuple(lines_of(written if isinstance(written, str) else "".join(written)))
        items = () if isinstance(written, str) else tuple(_elements(file, source.start))
        yield Cell(number, lines, source, items if tuple(written) == lines else (), python_of("".join(lines)))


def _language(whole: Any) -> str:
    about = whole.get("metadata", {})
    named = about.get("kernelspec", {}).get("language") or about.get("language_info", {}).get("name") or ""
    return str(named).lower()


DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\n\r]*")


def _skip(file: str, at: int) -> int:
    return SPACE.match(file, at).end()  # type: ignore[union-attr]


def _members(file: str, at: int) -> Iterator[tuple[str, Span]]:
    """(key, place of the value) of the JSON object that begins here."""
    at = _skip(file, at + 1)
    while file[at] != "}":
        key, at = DECODER.raw_decode(file, at)
        start = _skip(file, _skip(file, at) + 1)
        _, end = DECODER.raw_decode(file, start)
        yield key, Span(start, end)
        at = _skip(file, end)
        at = _skip(file, at + 1) if file[at] == "," else at


def _elements(file: str, at: int) -> Iterator[Span]:
    """The place of each element of the JSON array that begins here."""
    at = _skip(file, at + 1)
    while file[at] != "]":
        _, end = DECODER.raw_decode(file, at)
        yield Span(at, end)
        at = _skip(file, end)
        at = _skip(file, at + 1) if file[at] == "," else at


def python_of(source: str) -> str:
    """A cell's source with IPython's own lines blanked: `%cd x` is `pass`, `files = !ls` holds an unknown name.

    A cell magic takes its whole cell with it, unless the cell is Python all the same (`%%time`).
    """
    lines = lines_of(source)
    first = next((at for at, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[first].startswith("%%"):
        name = lines[first][2:].split()[0] if lines[first][2:].split() else ""
        if name not in CELL_MAGICS_WITH_PYTHON:
            return "".join(_blank(line) for line in lines)
        lines[first] = _blank(lines[first])
    return "".join(_without_magics(lines))


def _without_magics(lines: Sequence[str]) -> Iterator[str]:
    depth, inside, carried, magic = 0, "", False, False
    for line in lines:
        begins = not depth and not inside and not carried
        magic = _is_magic(line) if begins else magic and carried
        carried = line.rstrip().endswith("\\")
        if magic:
            yield _blank(line, "pass" if begins else "")
            continue
        if begins and (assigned := ASSIGNED_MAGIC.match(line)):
            magic = True
            yield _blank(line, assigned[1].lstrip(" \t") + "__ipython__")
            continue
        depth, inside = _state_after(line, depth, inside)
        yield line


def _is_magic(line: str) -> bool:
    return MAGIC.match(line) is not None or (AUTOMAGIC.match(line) is not None and not _is_python(line))


def _is_python(line: str) -> bool:
    try:
        compile(line, "<cell>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _blank(line: str, instead: str = "") -> str:
    body = line.rstrip("\r\n")
    indent = body[: len(body) - len(body.lstrip(" \t"))]
    return (indent + instead if instead else "") + line[len(body) :]


def _state_after(line: str, depth: int, inside: str) -> tuple[int, str]:
    """How many brackets are open after a line, and which long string it ends in."""
    at = 0
    if inside:
        end = line.find(inside)
        if end < 0:
            return depth, inside
        at = end + 3
    for piece in PIECES.finditer(line, at):
        if piece["open"]:
            depth += 1
        elif piece["close"]:
            depth = max(depth - 1, 0)
        elif piece["long"] and (len(piece["long"]) < 6 or not piece["long"].endswith(piece["long"][:3])):
            return depth, piece["long"][:3]
    return depth, ""
