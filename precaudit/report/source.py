"""Reads the user's own source lines, for excerpts; a file that is gone or is not text gives none."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

from precaudit.disk import read
from precaudit.model.wire import Finding, Line
from precaudit.notebook import ENDING, Notebook, NotebookError

SHOWN = frozenset({".py", ".pyi", ".json", ".jsonc", ".yaml", ".yml", ".toml", ".cfg", ".ini"})
"""Only files that precaudit itself reads are quoted: a report from elsewhere must not make it print others."""
LARGEST = 8_000_000
"""Bytes. Larger files are generated, and an excerpt is not worth reading them."""


class Source:
    """The lines of the files under one root, each file read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] = {}
        self._notebooks: dict[str, Notebook | None] = {}

    def line_of(self, at: Finding | Line) -> str | None:
        """The line that something stands on."""
        return self.line(at.path, at.line, at.cell)

    def line(self, path: str | None, number: int | None, cell: int | None = None) -> str | None:
        """The line with this number, of a notebook's cell or of a file, without its newline; None if it has none."""
        if not path or not number or number < 1:
            return None
        lines = self._file(path) if cell is None else self._cell(path, cell)
        return lines[number - 1] if number <= len(lines) else None

    def in_file(self, at: Finding | Line, line: int, column: int) -> tuple[int, int]:
        """(line, column) of a place for services that know nothing of cells: where it stands in the .ipynb file."""
        notebook = self._notebook(at.path or "") if at.cell else None
        return notebook.in_file(at.cell or 0, line, column) if notebook is not None else (line, column)

    def _file(self, path: str) -> list[str]:
        if path not in self._files:
            self._files[path] = _read(self.root / path)
        return self._files[path]

    def _cell(self, path: str, cell: int) -> list[str]:
        notebook = self._notebook(path)
        found = next((one for one in notebook.cells if one.number == cell), None) if notebook is not None else None
        return [line.rstrip("\r\n") for line in found.lines] if found is not None else []

    def _notebook(self, path: str) -> Notebook | None:
        if path not in self._notebooks:
            file = self.root / path
            try:
                self._notebooks[path] = Notebook(read(file, LARGEST)) if file.suffix == ENDING else None
            except (OSError, NotebookError, ValueError):
                self._notebooks[path] = None
        return self._notebooks[path]


def _read(path: Path) -> list[str]:
    if path.suffix not in SHOWN:
        return []
    try:
        raw = read(path, LARGEST)
        python = path.suffix in {".py", ".pyi"}
        encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8"
        return io.StringIO(raw.decode(encoding), newline=None).read().split("\n")
    except (OSError, SyntaxError, ValueError, LookupError):
        return []
