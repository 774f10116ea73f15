"""Puts what the source shows beside what a run did: each finding of `check` confirmed, refuted or not exercised."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Literal

from precaudit.judge import fits, grade, matches
from precaudit.model.evidence import worst
from precaudit.model.vocabulary import FLOATING, Fact, Kind, fact_from_json
from precaudit.model.wire import Finding, Line, Report, Rule, Severity
from precaudit.rulebook import Rulebook

Standing = Literal["confirmed", "refuted", "not-exercised"]


def join(static: Sequence[Finding], traced: Report, book: Rulebook) -> list[Finding]:
    """The findings of both witnesses, worst first, each once.

    A finding of `check` that the run made too carries the run's figures; one that is untrue of this run is a note. Of
    one whose line the traced steps did not show, nothing is known but what the source says.
    """
    facts = [fact_from_json(raw) for raw in traced.facts]
    left = list(traced.findings)
    found: list[Finding] = []
    for mine in static:
        theirs = _same(mine, static, left)
        if theirs is not None:
            left.remove(theirs)
            found.append(_confirmed(mine, theirs))
        else:
            found.append(_unconfirmed(mine, facts, book))
    alone = [_with_cause(finding, static) for finding in left]
    for finding in alone:
        finding.standing_because = finding.standing_because or "the source alone does not show it"
    return sorted([*found, *alone], key=lambda f: (-f.severity.rank, f.rule, f.path or "", f.line or 0, f.column or 0))


def _same(mine: Finding, static: Sequence[Finding], traced: Iterable[Finding]) -> Finding | None:
    """The finding of the run that is this one of the source: one rule, and one line; or the only one of its file."""
    dtypes = ("", mine.dtype) if mine.dtype else ("", *FLOATING)
    alike = [f for f in traced if f.rule == mine.rule and _file(f) == _file(mine) and f.dtype in dtypes]
    for theirs in alike:
        if _on(mine, theirs.line) or (theirs.cause is not None and _on(mine, theirs.cause.line)):
            return theirs
        if mine.cause is not None and mine.cause.line == theirs.line:
            return theirs
    rivals = [f for f in static if f.rule == mine.rule and _file(f) == _file(mine)]
    return alike[0] if len(alike) == len(rivals) == 1 and alike[0].role == mine.role else None


def _confirmed(mine: Finding, theirs: Finding) -> Finding:
    both = theirs.model_copy(deep=True)
    both.seen_by = ["check", "trace"]
    both.standing, both.standing_because = "confirmed", "the run did so"
    both.evidence = worst(mine.evidence, theirs.evidence)
    both.cause = theirs.cause or mine.cause
    both.fixable, both.suppressed = mine.fixable, mine.suppressed or theirs.suppressed
    both.because = theirs.because or mine.because
    if both.line == mine.line:
        both.column, both.end_line, both.end_column = mine.column, mine.end_line, mine.end_column
    return both


def _unconfirmed(mine: Finding, facts: Sequence[Fact], book: Rulebook) -> Finding:
    one = mine.model_copy(deep=True)
    rule = book.rules[mine.rule]
    if "trace" not in rule.seen_by:
        one.standing, one.standing_because = "not-exercised", "only the source shows it; no run does"
        return one
    untrue = _refutation(mine, rule, facts)
    if untrue:
        one.standing, one.standing_because = "refuted", untrue
        one.severity = Severity.NOTE
    else:
        one.standing, one.standing_because = "not-exercised", "the traced steps showed nothing of it on this line"
    return one


def _refutation(mine: Finding, rule: Rule, facts: Iterable[Fact]) -> str:
    """What the run showed on this line of the same thing, where that breaks the rule nowhere; "" where it did not."""
    here = [
        fact
        for fact in facts
        if fact.kind is rule.fact
        and (fact.role.value if fact.role else None) == mine.role
        and fact.site is not None
        and _on(mine, fact.site.line)
        and os.path.normpath(fact.site.path) == _file(mine)
        # A rule about averages is not refuted by a loss that was summed on the same line.
        and ("what" not in rule.when or fits({"what": rule.when["what"]}, fact.attrs))
    ]
    broken = [fact for fact in here if matches(rule, fact)]
    if any(grade(rule, fact) is not None for fact in broken):
        return ""  # it was seen and left out: by --select, or by a comment
    if broken:
        return "the run measured that it does no harm here"
    if not here or rule.fact is not Kind.HOLDS:
        return ""
    held = sorted({fact.dtype for fact in here})
    return f"in this run it held {' and '.join(held)} here" if mine.dtype not in held else "the run did otherwise here"


def _with_cause(finding: Finding, static: Iterable[Finding]) -> Finding:
    """A finding of the run with the line of the source that brought it about, where the run did not see one."""
    if finding.cause is not None:
        return finding
    for mine in static:
        if mine.role == finding.role and mine.dtype == finding.dtype and mine.line and mine.path:
            finding.cause = mine.cause or Line(text=mine.message, path=mine.path, line=mine.line)
            break
    return finding


def _on(mine: Finding, line: int | None) -> bool:
    """Whether a line is one of the statement that a finding of `check` points at."""
    return line is not None and mine.line is not None and mine.line <= line <= (mine.end_line or mine.line)


def _file(finding: Finding) -> str:
    return os.path.normpath(finding.path) if finding.path else ""
