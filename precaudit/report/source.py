"""Reads the user's own source lines, for excerpts; a file that is gone or is not text gives none."""

from __future__ import annotations

import tokenize
from pathlib import Path

SHOWN = frozenset({".py", ".pyi", ".json", ".jsonc", ".yaml", ".yml", ".toml", ".cfg", ".ini"})
"""Only files that precaudit itself reads are quoted: a report from elsewhere must not make it print others."""
LARGEST = 8_000_000
"""Bytes. Larger files are generated, and an excerpt is not worth reading them."""


class Source:
    """The lines of the files under one root, each file read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] = {}

    def line(self, path: str | None, number: int | None) -> str | None:
        """The line with this number, without its newline; None where it cannot be read."""
        if not path or not number or number < 1:
            return None
        if path not in self._files:
            self._files[path] = _read(self.root / path)
        lines = self._files[path]
        return lines[number - 1] if number <= len(lines) else None


def _read(path: Path) -> list[str]:
    if path.suffix not in SHOWN:
        return []
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return []
        if path.suffix in {".py", ".pyi"}:
            with tokenize.open(path) as file:
                return file.read().split("\n")
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, SyntaxError, ValueError):
        return []
