"""The lines that changed since a git revision, so that a report can be about those alone."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from precaudit import git
from precaudit.disk import read
from precaudit.errors import UsageError
from precaudit.notebook import ENDING, Notebook, NotebookError

if TYPE_CHECKING:
    from precaudit.model.wire import Finding, Line

HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@")
Changed = Mapping[str, frozenset[int] | None]
"""Absolute path -> its changed lines; None where every line is new."""


def changed_since(revision: str, folder: Path) -> Changed:
    """What differs from where this branch left `revision`, files that git does not know yet included.

    Raises UsageError, one line, outside of a repository and for a revision that it does not have.
    """
    top = Path(_git(folder, "rev-parse", "--show-toplevel", instead="--since: not in a git repository").rstrip("\n"))
    wrong = f"--since: '{revision}' is not a revision of the repository {top}"
    if revision.startswith("-"):
        raise UsageError(wrong)
    start = _git(top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", instead=wrong).strip()
    base = _git(top, "merge-base", start, "HEAD").strip() or start
    options = (
        "--unified=0",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--src-prefix=a/",
        "--dst-prefix=b/",
    )
    changed: dict[str, frozenset[int] | None] = {}
    for name, lines in _hunks(_git(top, "-c", "core.quotePath=off", "diff", *options, base, instead=wrong)):
        changed[os.path.join(top, name)] = frozenset(lines)
    for name in _git(top, "ls-files", "--others", "--exclude-standard", "-z").split("\0"):
        if name:
            changed[os.path.join(top, name)] = None
    return changed


def touched(findings: Iterable[Finding], changed: Changed) -> list[Finding]:
    """The findings that stand on a changed line, or whose cause does."""
    notebooks: dict[str, Notebook | None] = {}
    return [
        finding
        for finding in findings
        if _on_changed(finding, changed, notebooks)
        or (finding.cause and _on_changed(finding.cause, changed, notebooks))
    ]


def _on_changed(at: Finding | Line, changed: Changed, notebooks: dict[str, Notebook | None]) -> bool:
    file = os.path.realpath(at.path or "")
    if not at.path or file not in changed:
        return False
    lines = changed[file]
    first = at.line or 1
    last = max(getattr(at, "end_line", None) or first, first)
    wanted = range(first, last + 1)
    if at.cell and file.endswith(ENDING):
        if file not in notebooks:
            notebooks[file] = _notebook(file)
        notebook = notebooks[file]
        if notebook is not None:
            return lines is None or any(notebook.in_file(at.cell, line)[0] in lines for line in wanted)
    return lines is None or any(line in lines for line in wanted)


def _notebook(file: str) -> Notebook | None:
    try:
        return Notebook(read(file))
    except (OSError, NotebookError):
        return None


def _hunks(diff: str) -> Iterable[tuple[str, list[int]]]:
    """(path, new lines) of each file in a diff without context."""
    name, left = "", 0
    lines: list[int] = []
    for line in diff.split("\n"):
        if left > 0 and line[:1] == "+":
            left -= 1
        elif line.startswith("+++ "):
            if name:
                yield name, lines
            name, lines = _unquoted(line[4:]), []
        elif match := HUNK.match(line):
            count = int(match[2]) if match[2] is not None else 1
            lines += range(int(match[1]), int(match[1]) + count)
            left = count
    if name:
        yield name, lines


def _unquoted(name: str) -> str:
    """A path as git writes it after `+++`: with a prefix, quoted as in C where it has odd characters."""
    name = name.removesuffix("\t")
    if name.startswith('"'):
        plain = name[1:-1].encode("utf-8", "surrogateescape").decode("latin-1")
        name = plain.encode("latin-1").decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
    return name.removeprefix("b/") if name != "/dev/null" else ""


def _git(folder: Path, *words: str, instead: str = "") -> str:
    """What git answers. Where it fails: UsageError with the words `instead`, or nothing where there are none."""
    try:
        done = subprocess.run(git.command(folder, *words), capture_output=True, check=False)
    except OSError as error:
        raise UsageError(f"--since needs git, which cannot be started: {error.strerror}") from None
    if done.returncode:
        if instead:
            raise UsageError(instead)
        return ""
    return done.stdout.decode("utf-8", "surrogateescape")
