"""Applies certain fixes: the tree finds the nodes, only their own text is replaced, and the result is checked again."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from precaudit.disk import read, rewrite
from precaudit.model.wire import Finding
from precaudit.notebook import ENDING, Notebook, NotebookError, lines_of, place
from precaudit.settings import Settings
from precaudit.static.decoding import SourceError, decode
from precaudit.static.files.discovery import CONFIGS, Found
from precaudit.static.files.fixes.edits import Edit, Tree, applied
from precaudit.static.files.fixes.rules import FIXES
from precaudit.static.findings import findings_of

MAX_ROUNDS = 8
"""A fix can reveal the next; a file is fixed at most this often."""


class Changed(NamedTuple):
    """What was or would be changed."""

    diff: str
    fixes: int
    refused: list[str]
    """One line for each file that could not be written."""


def fix_files(
    results: Sequence[tuple[Found, dict[str, Any]]], settings: Settings, write: bool, unsafe: bool
) -> Changed:
    """Fixes every file that has a fixable finding, and writes it when asked to."""
    diffs, refused = [], []
    count = 0
    for item, result in results:
        if not result.get("facts") or item.file.endswith(CONFIGS):
            continue
        before = read(item.path)
        try:
            done = (_in_notebook if item.file.endswith(ENDING) else _in_source)(item, before, settings, unsafe)
        except (SourceError, NotebookError):
            continue
        if done is None:
            continue
        if write:
            try:
                rewrite(item.path, done.after)
            except OSError as error:
                refused.append(f"{item.shown}: cannot be written: {error.strerror}; nothing was fixed in it")
                continue
        count += done.fixes
        diffs.append(done.diff)
    return Changed("".join(diffs), count, refused)


class _Fixed(NamedTuple):
    """One file, fixed."""

    after: bytes
    diff: str
    fixes: int


def _in_source(item: Found, before: bytes, settings: Settings, unsafe: bool) -> _Fixed | None:
    text = decode(before)
    fixed, fixes = fix_text(item, text, settings, unsafe)
    if not fixes:
        return None
    return _Fixed(_encoded(before, fixed), _diff(item.shown, lines_of(text), lines_of(fixed)), fixes)


def _in_notebook(item: Found, before: bytes, settings: Settings, unsafe: bool) -> _Fixed | None:
    """The fixes are made in the text of all cells, and each cell's change is put back into its place in the JSON."""
    notebook = Notebook(before)
    # Examined under a name that says what this text is: Python.
    fixed, fixes = fix_text(Found(f"{item.file}.py", item.shown), notebook.text, settings, unsafe)
    if not fixes:
        return None
    after, cells = notebook.changed(fixed)
    if Notebook(after).text != fixed:
        return None
    diff = "".join(_diff(f"{item.shown}:cell {number}", old, new) for number, old, new in cells)
    return _Fixed(after, diff, fixes)


def _diff(name: str, old: Sequence[str], new: Sequence[str]) -> str:
    """A unified diff in which every line ends."""
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


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


def mended(item: Found, text: str, finding: Finding, settings: Settings) -> tuple[str, bool] | None:
    """The text with this one finding mended, and whether that may change more; None where no fix holds."""
    fix = FIXES.get(finding.rule)
    edits = fix.make(finding, Tree(text)) if fix is not None else []
    if fix is None or not edits:
        return None
    changed = applied(text, edits)
    return (changed, fix.unsafe) if _better(item, changed, _findings(item, text, settings), settings) else None


def mark_fixable(
    results: Sequence[tuple[Found, dict[str, Any]]], findings: Sequence[Finding], settings: Settings
) -> None:
    """Sets `fixable` on those of the findings that `fix_files` would mend without `unsafe`."""
    files = {item.shown: (item, result) for item, result in results if not item.file.endswith(CONFIGS)}
    wanted = {f.path or "" for f in findings if f.rule in FIXES and not FIXES[f.rule].unsafe and not f.suppressed}
    for path in wanted & files.keys():
        try:
            mended = _mended(*files[path], settings)
        except (OSError, SourceError, NotebookError):
            continue
        for finding in findings:
            place = (finding.rule, finding.cell, finding.line, finding.column)
            finding.fixable = finding.fixable or (finding.path == path and not finding.suppressed and place in mended)


def _mended(
    item: Found, result: dict[str, Any], settings: Settings
) -> set[tuple[str, int | None, int | None, int | None]]:
    """(rule, cell, line, column) of each finding in a file whose fix holds, by what the file was found to have."""
    raw = read(item.path)
    notebook = Notebook(raw) if item.file.endswith(ENDING) else None
    text = notebook.text if notebook is not None else decode(raw)
    if notebook is not None:
        item = Found(f"{item.file}.py", item.shown)
        findings = _findings(item, text, settings)
    else:
        findings = _own(item, result, settings)
    tree = Tree(text)
    fixes = [(f, fix) for f in findings if (fix := FIXES.get(f.rule)) is not None and not fix.unsafe]
    made = [(f, fix, edits) for f, fix in fixes if (edits := fix.make(f, tree))]
    good = [f for f, fix, _ in made if fix.same]
    asked = [(f, edits) for f, fix, edits in made if not fix.same]
    if len(asked) > 1 and _all_better(item, text, [edits for _, edits in asked], findings, settings):
        good += [f for f, _ in asked]
    else:
        good += [f for f, edits in asked if _better(item, applied(text, edits), findings, settings)]
    firsts = notebook.firsts() if notebook is not None else []
    return {(f.rule, *(place(firsts, f.line or 1) if firsts else (None, f.line)), f.column) for f in good}


def _findings(item: Found, text: str, settings: Settings) -> list[Finding]:
    from precaudit.static.files.run import examine

    return _own(item, examine(item, text.encode("utf-8")), settings)


def _own(item: Found, result: dict[str, Any], settings: Settings) -> list[Finding]:
    """The findings in the file itself."""
    return [f for f in findings_of([(item, result)], settings) if not f.suppressed and f.path == item.shown]


def _better(item: Found, text: str, before: list[Finding], settings: Settings) -> bool:
    """Whether the text still parses and has fewer findings than before, and none of a new kind."""
    if not _parses(text):
        return False
    after = _findings(item, text, settings)
    return len(after) < len(before) and {f.rule for f in after} <= {f.rule for f in before}


def _parses(text: str) -> bool:
    from precaudit.static.files.run import compiles

    try:
        return compiles(text.encode("utf-8")) or Tree(text) is not None
    except SourceError:
        return False


def _all_better(
    item: Found, text: str, fixes: Sequence[Sequence[Edit]], before: list[Finding], settings: Settings
) -> bool:
    """Whether all fixes made at once mend as many findings as there are fixes: one look instead of one for each."""
    edits = sorted({edit for some in fixes for edit in some})
    if any(first.end > second.start for first, second in pairwise(edits)):
        return False
    if not _parses(changed := applied(text, edits)):
        return False
    after = _findings(item, changed, settings)
    return len(after) == len(before) - len(fixes) and {f.rule for f in after} <= {f.rule for f in before}


__all__ = ["Changed", "Edit", "fix_files", "fix_text", "mark_fixable", "mended"]
