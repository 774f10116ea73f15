"""Applies certain fixes: LibCST finds the nodes, only their own text is replaced, and the result is checked again."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from precaudit.model.wire import Finding
from precaudit.settings import Settings
from precaudit.static.decoding import SourceError, decode
from precaudit.static.files import Found
from precaudit.static.findings import findings_of
from precaudit.static.fixes.edits import Edit, Tree, applied
from precaudit.static.fixes.rules import FIXES

MAX_ROUNDS = 8
"""A fix can reveal the next; a file is fixed at most this often."""


class Changed(NamedTuple):
    """What was or would be changed."""

    diff: str
    fixes: int


def fix_files(
    results: Sequence[tuple[Found, dict[str, Any]]], settings: Settings, write: bool, unsafe: bool
) -> Changed:
    """Fixes every file that has a fixable finding, and writes it when asked to."""
    diffs = []
    count = 0
    for item, result in results:
        if not result.get("facts") or not item.path.name.endswith(".py"):
            continue
        before = item.path.read_bytes()
        try:
            text = decode(before)
        except SourceError:
            continue
        fixed, fixes = fix_text(item, text, settings, unsafe)
        if not fixes:
            continue
        count += fixes
        lines = difflib.unified_diff(
            text.splitlines(True), fixed.splitlines(True), f"a/{item.shown}", f"b/{item.shown}"
        )
        diffs.append("".join(lines))
        if write:
            item.path.write_bytes(_encoded(before, fixed))
    return Changed("".join(diffs), count)


def _encoded(before: bytes, text: str) -> bytes:
    import io
    import tokenize

    encoding, _ = tokenize.detect_encoding(io.BytesIO(before).readline)
    return text.encode(encoding)


def fix_text(item: Found, text: str, settings: Settings, unsafe: bool) -> tuple[str, int]:
    """The text with every certain fix applied, and how many there were."""
    done = 0
    refused: set[tuple[str, int | None, int | None]] = set()
    for _ in range(MAX_ROUNDS):
        findings = _findings(item, text, settings)
        tree = Tree(text)
        for finding in findings:
            key = (finding.rule, finding.line, finding.column)
            fix = FIXES.get(finding.rule)
            if fix is None or key in refused or (fix.unsafe and not unsafe):
                continue
            edits = fix.make(finding, tree)
            changed = applied(text, edits) if edits else text
            if changed != text and _better(item, changed, findings, settings):
                text, done = changed, done + 1
                break
            refused.add(key)
        else:
            return text, done
    return text, done


def _findings(item: Found, text: str, settings: Settings) -> list[Finding]:
    from precaudit.static.run import examine

    found = findings_of([(item, examine(item, text.encode("utf-8")))], settings)
    return [f for f in found if not f.suppressed and f.path == item.shown]


def _better(item: Found, text: str, before: list[Finding], settings: Settings) -> bool:
    """Whether the text still parses and has fewer findings than before, and none of a new kind."""
    try:
        Tree(text)
    except SourceError:
        return False
    after = _findings(item, text, settings)
    return len(after) < len(before) and {f.rule for f in after} <= {f.rule for f in before}


__all__ = ["Changed", "Edit", "fix_files", "fix_text"]
