"""Finds the files to check: Python sources and training configs, without what .gitignore and `exclude` name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from precaudit.disk import opened, read
from precaudit.errors import UsageError
from precaudit.patterns import Patterns

ALWAYS_EXCLUDED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".precaudit_cache",
        ".tox",
        ".nox",
        "node_modules",
        "site-packages",
        ".eggs",
        ".ipynb_checkpoints",
        "build",
        "dist",
    }
)
"""Folders that are never entered; one named on the command line is."""
SOURCES = (".py", ".pyi")
CONFIGS = (".json", ".yaml", ".yml")
NOTEBOOK = ".ipynb"
LARGEST_GITIGNORE = 1_000_000
READ = (*SOURCES, *CONFIGS, NOTEBOOK)
"""The endings of all that is read."""


class Found(NamedTuple):
    """A file to check: its absolute path, and the path as the user would write it."""

    file: str
    shown: str

    @property
    def path(self) -> Path:
        """The absolute path; made when asked for, which for most files is never."""
        return Path(self.file)


class Excluder:
    """Answers whether an absolute path is excluded, reading each .gitignore once."""

    def __init__(self, root: Path, patterns: Sequence[str], gitignore: bool) -> None:
        own = Patterns(patterns)
        self._own = [(os.path.join(root, ""), own)] if own else []
        self._gitignore = gitignore
        self._above: dict[str, list[tuple[str, Patterns]]] = {}

    def excludes(self, path: str, is_folder: bool) -> bool:
        """Whether the settings or a .gitignore exclude a path whose folder is not excluded itself.

        As for git, the nearest .gitignore that says anything of the path decides.
        """
        for folder, spec in self.specs(os.path.dirname(path)):
            if path.startswith(folder):
                verdict = spec.verdict(path[len(folder) :].replace(os.sep, "/"), is_folder)
                if verdict is not None:
                    return verdict
        return False

    def excludes_named(self, path: str, is_folder: bool) -> bool:
        """Whether a path named on the command line is excluded, or a folder that holds it."""
        above = []
        folder = os.path.dirname(path)
        while self.specs(folder) and os.path.dirname(folder) != folder:
            above.append(folder)
            if os.path.exists(os.path.join(folder, ".git")):
                break
            folder = os.path.dirname(folder)
        return any(self.excludes(folder, True) for folder in reversed(above[:-1])) or self.excludes(path, is_folder)

    def specs(self, folder: str) -> list[tuple[str, Patterns]]:
        """(folder with a separator at its end, patterns) of all that hold for a folder's entries."""
        return self._own + self._gitignores(folder) if self._gitignore else self._own

    def _gitignores(self, folder: str) -> list[tuple[str, Patterns]]:
        """The .gitignore files from a folder up to the root of its repository."""
        known = self._above.get(folder)
        if known is None:
            spec = self._read(folder)
            known = [(os.path.join(folder, ""), spec)] if spec else []
            parent = os.path.dirname(folder)
            if parent != folder and not os.path.exists(os.path.join(folder, ".git")):
                known = known + self._gitignores(parent)
            self._above[folder] = known
        return known

    def _read(self, folder: str) -> Patterns:
        try:
            text = read(os.path.join(folder, ".gitignore"), LARGEST_GITIGNORE).decode("utf-8", "surrogateescape")
        except OSError:
            return Patterns(())
        return Patterns(text.removeprefix("\ufeff").split("\n"))


class Discovery(NamedTuple):
    """What stands under the paths that a user typed."""

    found: list[Found]
    skipped: list[str]
    """One line for each file that was passed over and should not be silently."""
    barren: list[str]
    """The paths that are or hold nothing that is read."""
    excluded: int
    """Files and folders that the settings or a .gitignore leave out; they count as examined."""


def discover(paths: Sequence[str], excluder: Excluder) -> Discovery:
    """The files under these paths. Raises UsageError for a path that does not exist."""
    found: dict[str, Found] = {}
    skipped: list[str] = []
    barren: list[str] = []
    excluded = 0
    for name in paths:
        path = Path(name)
        if not path.exists():
            if path.is_symlink():
                skipped.append(f"{name}: broken symlink")
                continue
            raise UsageError(f"{name}: no such file or folder")
        file = os.path.abspath(path)
        if path.is_dir() and excluder.excludes_named(file, True):
            excluded += 1
        elif path.is_dir():
            before, out = len(found), excluded
            for item in _walk(path, excluder):
                if item is None:
                    excluded += 1
                else:
                    found.setdefault(item.file, item)
            if len(found) == before and excluded == out and not any(f.startswith(file + os.sep) for f in found):
                barren.append(name)
        elif excluder.excludes_named(file, False):
            excluded += 1
            skipped.append(f"{name}: excluded by .gitignore or the settings")
        elif _is_read(file):
            found.setdefault(file, Found(file, _shown(name)))
        else:
            barren.append(name)
    return Discovery(list(found.values()), skipped, barren, excluded)


def _is_read(file: str) -> bool:
    """Whether a file named on the command line is Python or a config, by its ending or by its first line."""
    if file.endswith(READ):
        return True
    try:
        with opened(file) as content:
            first = content.readline(200)
    except OSError:
        return True
    return first.startswith(b"#!") and b"python" in first


def _shown(name: str) -> str:
    return name.removeprefix("./").replace(os.sep, "/")


def _walk(folder: Path, excluder: Excluder) -> Iterator[Found | None]:
    """Files under a folder in a stable order, None for what is excluded.

    Links to folders are not followed, so that no loop can arise.
    """
    stack = [str(folder)]
    while stack:
        here = stack.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError:
            continue
        folders = []
        base = os.path.join(os.path.abspath(here), "")
        shown = _shown(os.path.normpath(here))
        front = "" if shown == "." else shown.rstrip("/") + "/"
        filtered = bool(excluder.specs(os.path.abspath(here)))
        for entry in entries:
            path = base + entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name in ALWAYS_EXCLUDED:
                    continue
                if filtered and excluder.excludes(path, True):
                    yield None
                else:
                    folders.append(entry.path)
            elif entry.name.endswith(READ):
                yield None if filtered and excluder.excludes(path, False) else Found(path, front + entry.name)
        stack.extend(reversed(folders))
