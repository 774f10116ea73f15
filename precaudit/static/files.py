"""Finds the files to check: Python sources and training configs, without what .gitignore and `exclude` name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precaudit.errors import UsageError

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
        "build",
        "dist",
    }
)
"""Folders that are never entered; one named on the command line is."""
SOURCES = (".py", ".pyi")
CONFIGS = (".json", ".yaml", ".yml")


class Found(NamedTuple):
    """A file to check: where it is, and the path as the user would write it."""

    path: Path
    shown: str


class Excluder:
    """Answers whether a path is excluded, reading each .gitignore once."""

    def __init__(self, root: Path, patterns: Sequence[str], gitignore: bool) -> None:
        self.root = root
        self.gitignore = gitignore
        self._own = _spec(patterns)
        self._per_folder: dict[Path, Any] = {}
        self._above: dict[Path, list[tuple[Path, Any]]] = {}

    def excludes(self, path: Path, is_folder: bool) -> bool:
        """Whether the settings or a .gitignore exclude a path whose folder is not excluded itself.

        As for git, the nearest .gitignore that says anything of the path decides.
        """
        suffix = "/" if is_folder else ""
        relative = _relative(path, self.root)
        if self._own is not None and relative is not None and self._own.match_file(relative + suffix):
            return True
        if not self.gitignore:
            return False
        for folder, spec in self._specs_above(path.parent):
            inner = _relative(path, folder)
            verdict = spec.check_file(inner + suffix).include if inner is not None else None
            if verdict is not None:
                return bool(verdict)
        return False

    def excludes_named(self, path: Path) -> bool:
        """Whether a file named on the command line is excluded, or a folder that holds it."""
        tops = [folder for folder in path.parents if (folder / ".git").exists() or folder == self.root]
        above = [folder for folder in path.parents if tops and folder != tops[-1] and tops[-1] in folder.parents]
        return any(self.excludes(folder, True) for folder in reversed(above)) or self.excludes(path, False)

    def _specs_above(self, folder: Path) -> list[tuple[Path, Any]]:
        """The .gitignore files that hold for a folder's entries, up to the root of its repository."""
        known = self._above.get(folder)
        if known is None:
            own = self._folder(folder)
            known = [(folder, own)] if own is not None else []
            if not (folder / ".git").exists() and folder.parent != folder:
                known = known + self._specs_above(folder.parent)
            self._above[folder] = known
        return known

    def _folder(self, folder: Path) -> Any:
        if folder not in self._per_folder:
            try:
                lines = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                lines = []
            self._per_folder[folder] = _spec(lines)
        return self._per_folder[folder]


def _spec(patterns: Sequence[str]) -> Any:
    wanted = [p for p in patterns if p.strip() and not p.lstrip().startswith("#")]
    if not wanted:
        return None
    import pathspec

    return pathspec.GitIgnoreSpec.from_lines(wanted)


def _relative(path: Path, root: Path) -> str | None:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return None


class Discovery(NamedTuple):
    """What stands under the paths that a user typed."""

    found: list[Found]
    skipped: list[str]
    """One line for each file that was passed over and should not be silently."""
    barren: list[str]
    """The paths that hold no Python file and no config at all."""
    excluded: int
    """Files and folders that the settings or a .gitignore leave out; they count as examined."""


def discover(paths: Sequence[str], excluder: Excluder) -> Discovery:
    """The files under these paths. Raises UsageError for a path that does not exist."""
    found: dict[Path, Found] = {}
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
        if path.is_dir():
            entries = list(_walk(path, excluder))
            found.update((item.path, item) for item in entries if item is not None and item.path not in found)
            excluded += entries.count(None)
            if not entries:
                barren.append(name)
        elif excluder.excludes_named(_absolute(path)):
            excluded += 1
            skipped.append(f"{name}: excluded by .gitignore or the settings")
        else:
            found.setdefault(_absolute(path), Found(_absolute(path), _shown(name)))
    return Discovery(list(found.values()), skipped, barren, excluded)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


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
        for entry in entries:
            path = Path(os.path.abspath(entry.path))
            if entry.is_dir(follow_symlinks=False):
                if entry.name in ALWAYS_EXCLUDED:
                    continue
                if excluder.excludes(path, True):
                    yield None
                else:
                    folders.append(entry.path)
            elif entry.name.endswith(SOURCES + CONFIGS):
                yield None if excluder.excludes(path, False) else Found(path, _shown(os.path.normpath(entry.path)))
        stack.extend(reversed(folders))
