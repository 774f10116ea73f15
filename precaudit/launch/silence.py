"""Marks the findings that the user has accepted: by an ignore comment on the line, or by per-file-ignores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from precaudit import suppressions
from precaudit.model.wire import Finding
from precaudit.rulebook import Rulebook


def silence(findings: Sequence[Finding], folder: Path) -> None:
    """Sets `suppressed` where a comment in the source, read from below `folder`, covers the finding's line."""
    comments: dict[str, list[suppressions.Suppression]] = {}
    for finding in findings:
        if not finding.path or not finding.line:
            continue
        if finding.path not in comments:
            comments[finding.path] = _comments(folder / finding.path)
        if suppressions.silenced(comments[finding.path], finding.rule, finding.name, finding.line):
            finding.suppressed = True


def _comments(path: Path) -> list[suppressions.Suppression]:
    try:
        return suppressions.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


def outside(
    findings: Sequence[Finding], ignores: Mapping[str, Sequence[str]], root: Path, cwd: Path, book: Rulebook
) -> list[Finding]:
    """The findings that `per-file-ignores` leaves; its patterns count from `root`, where pyproject.toml is."""
    if not ignores:
        return list(findings)
    import pathspec

    table = [(pathspec.GitIgnoreSpec.from_lines([pattern]), book.select(rules)) for pattern, rules in ignores.items()]

    def accepted(finding: Finding) -> bool:
        if not finding.path:
            return False
        place = (cwd / finding.path).resolve()
        shown = place.relative_to(root).as_posix() if place.is_relative_to(root) else place.as_posix()
        return any(finding.rule in rules and patterns.match_file(shown) for patterns, rules in table)

    return [finding for finding in findings if not accepted(finding)]
