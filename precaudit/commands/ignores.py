"""`precaudit check --add-ignore`: a comment at each statement that has findings, shown first, written when asked to."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from precaudit import suppressions
from precaudit.disk import read, rewrite
from precaudit.notebook import ENDING, Notebook, lines_of

if TYPE_CHECKING:
    from precaudit.model.wire import Finding

ABOUT_COMMENTS = "PA0"
"""Rules about ignore comments themselves; another comment is no answer to them."""


class Ignored(NamedTuple):
    """What was or would be added."""

    diff: str
    comments: int
    refused: list[str]
    """One line for each file that takes no comment or cannot be written."""


def add_ignores(findings: Sequence[Finding], write: bool) -> Ignored:
    """Puts `# precaudit: ignore[…]` where these findings stand."""
    wanted: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.path and finding.line and not finding.rule.startswith(ABOUT_COMMENTS):
            wanted[finding.path].append(finding)
    diffs, comments, refused = [], 0, []
    for path, mine in sorted(wanted.items()):
        if path.endswith(".json"):
            refused.append(f"{path}: JSON has no comments; use per-file-ignores or a baseline")
            continue
        try:
            raw = read(path)
            after, diff, count = _in_notebook(path, raw, mine) if path.endswith(ENDING) else _in_text(path, raw, mine)
            if write and count:
                rewrite(Path(path), after)
        except OSError as error:
            refused.append(f"{path}: cannot be written: {error.strerror}")
            continue
        except (SyntaxError, UnicodeError) as error:
            refused.append(f"{path}: no comment can be put there: {error}")
            continue
        diffs.append(diff)
        comments += count
    return Ignored("".join(diffs), comments, refused)


def _in_text(path: str, raw: bytes, findings: Sequence[Finding]) -> tuple[bytes, str, int]:
    import io
    import tokenize

    python = not path.endswith((".yaml", ".yml"))
    encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8"
    text = raw.decode(encoding)
    fixed, count = suppressions.with_ignores(text, _rules_at(findings, None), python)
    return fixed.encode(encoding), _diff(path, lines_of(text), lines_of(fixed)), count


def _in_notebook(path: str, raw: bytes, findings: Sequence[Finding]) -> tuple[bytes, str, int]:
    notebook = Notebook(raw)
    fixed, count = suppressions.with_ignores(notebook.text, _rules_at(findings, notebook), True)
    after, cells = notebook.changed(fixed)
    return after, "".join(_diff(f"{path}:cell {number}", old, new) for number, old, new in cells), count


def _rules_at(findings: Sequence[Finding], notebook: Notebook | None) -> Mapping[int, set[str]]:
    """Line -> the rules to be silent there."""
    rules: dict[int, set[str]] = defaultdict(set)
    for finding in findings:
        line = finding.line or 1
        rules[notebook.line(finding.cell or 0, line) if notebook is not None else line].add(finding.rule)
    return rules


def _diff(name: str, old: Sequence[str], new: Sequence[str]) -> str:
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
