"""What the user has accepted, for both witnesses: by a comment on the line, and by per-file-ignores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from precaudit import suppressions
from precaudit.disk import read_text
from precaudit.model.wire import Finding
from precaudit.patterns import Patterns
from precaudit.rulebook import Rulebook
from precaudit.suppressions import Suppression


def silence(findings: Iterable[Finding], comments: Callable[[str], Sequence[Suppression]]) -> None:
    """Sets `suppressed` where one of the comments in the finding's file covers its line, and marks them as used."""
    for finding in findings:
        if finding.path and finding.line:
            found = comments(finding.path)
            if suppressions.silenced(found, finding.rule, finding.name, finding.line):
                finding.suppressed = True


class CommentsBelow:
    """The ignore comments of files below a folder, each read once; a file that cannot be read has none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, list[Suppression]] = {}

    def __call__(self, path: str) -> list[Suppression]:
        if path not in self._read:
            try:
                self._read[path] = suppressions.read(read_text(self._folder / path))
            except OSError:
                self._read[path] = []
        return self._read[path]


class PerFileIgnores:
    """The table `per-file-ignores`; its patterns count from `root`, where pyproject.toml is."""

    def __init__(self, ignores: Mapping[str, Sequence[str]], root: Path, cwd: Path, book: Rulebook) -> None:
        self._root, self._cwd = root.resolve(), cwd
        self._table = [(Patterns([pattern]), book.select(rules)) for pattern, rules in ignores.items()]

    def rules(self, path: str) -> set[str]:
        """The rule ids that are off in this file."""
        if not self._table or not path:
            return set()
        place = (self._cwd / path).resolve()
        shown = place.relative_to(self._root).as_posix() if place.is_relative_to(self._root) else place.as_posix()
        return {rule for patterns, rules in self._table if patterns.cover(shown) for rule in rules}

    def leave(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings that it does not take out."""
        return [f for f in findings if not self._table or f.rule not in self.rules(f.path or "")]
