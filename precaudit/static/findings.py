"""Turns the results of files into findings: judged, selected, silenced by comments, each reported once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precaudit.allowed.contract import NOTHING, Contract
from precaudit.allowed.read import contract_of
from precaudit.judge import judge
from precaudit.model.vocabulary import Fact, Kind, Site, fact_from_json
from precaudit.model.wire import Finding
from precaudit.notebook import place
from precaudit.rulebook import Rulebook, load
from precaudit.settings import Settings
from precaudit.silence import PerFileIgnores, silence
from precaudit.static.files.discovery import Found
from precaudit.suppressions import Suppression

Results = Sequence[tuple[Found, dict[str, Any]]]


def findings_of(results: Results, settings: Settings) -> list[Finding]:
    """All findings of these results under these settings, in the order of the source."""
    book = load()
    selected = select(book, settings)
    ignores = PerFileIgnores(settings.per_file_ignores, settings.root, Path.cwd(), book)
    contract = contract_of(settings, book)
    found = [f for item, result in results for f in judged(item, result, book, selected, ignores, contract)]
    found += [f for f in judge(contract.expired(Path.cwd()), book, "check") if f.rule in selected]
    return sorted(
        _without_repeats(found), key=lambda f: (f.path or "", f.cell or 0, f.line or 0, f.column or 0, f.rule)
    )


def select(book: Rulebook, settings: Settings) -> set[str]:
    """The rule ids that may speak. Raises RuleError for a name that matches none."""
    chosen = book.select(settings.select) if settings.select else set(book.rules)
    chosen |= book.select(settings.extend_select)
    return chosen - book.select(settings.ignore)


def judged(
    item: Found,
    result: dict[str, Any],
    book: Rulebook,
    selected: set[str],
    ignores: PerFileIgnores,
    contract: Contract = NOTHING,
) -> list[Finding]:
    """The findings of one file, those that its ignore comments silence marked so, and what to say of the comments."""
    rows = result.get("suppressions", [])
    comments = [Suppression(r[0], r[1], r[2], r[3], tuple(r[4]), r[5], foreign=r[6]) for r in rows]
    facts = [fact_from_json(raw) for raw in result.get("facts", [])]
    kept = ignores.leave(f for f in judge(facts, book, "check", allowed=contract) if f.rule in selected)
    silence(kept, lambda path: comments if path == item.shown else ())
    remarks = []
    for comment in comments:
        site = Site(item.shown, comment.line, comment.column)
        if not comment.rules:
            remarks.append(Fact(Kind.SUPPRESSION, site=site, attrs={"names_rule": False}))
        elif not comment.foreign and not comment.used and _could_be_used(comment.rules, book, selected):
            remarks.append(Fact(Kind.SUPPRESSION, site=site, attrs={"used": False}))
    found = kept + ignores.leave(f for f in judge(remarks, book, "check") if f.rule in selected)
    if firsts := result.get("firsts"):
        for finding in found:
            _into_cells(finding, item.shown, firsts)
    return found


def _into_cells(finding: Finding, path: str, firsts: Sequence[Sequence[int]]) -> None:
    """Names the cell of a notebook, and the line in it, in place of the line of all its code."""
    cause = finding.cause
    if cause is not None and cause.path == path and cause.line:
        cell, line = place(firsts, cause.line)
        finding.cause = cause.model_copy(update={"cell": cell, "line": line})
    if finding.path != path or not finding.line:
        return
    first = finding.line
    finding.cell, finding.line = place(firsts, first)
    if finding.end_line:
        finding.end_line += finding.line - first


def _could_be_used(names: Sequence[str], book: Rulebook, selected: set[str]) -> bool:
    """Whether a comment names only rules of which this run would have used one."""
    for name in names:
        rules = [r for r in book.rules.values() if r.name == name or r.id.startswith(name.upper())]
        if any("check" not in rule.seen_by or rule.id not in selected for rule in rules):
            return False
    return True


def _without_repeats(findings: list[Finding]) -> list[Finding]:
    """A finding in a module that several files import is one finding."""
    kept: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        path = os.path.abspath(finding.path) if finding.path else ""
        key = (finding.rule, path, finding.cell, finding.line, finding.column, finding.message)
        if key not in kept or (finding.suppressed and not kept[key].suppressed):
            kept[key] = finding
    return list(kept.values())
