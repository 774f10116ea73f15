"""The first line of a report: what is wrong, and the worst that it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precaudit.model.vocabulary import LOW
from precaudit.model.wire import Finding, Report, Severity
from precaudit.report import words
from precaudit.report.evidence import sentence
from precaudit.report.roles import Row

DAMAGE = (
    "inf_share", "updates_lost", "state_frozen", "gradient_underflow", "gradient_zeros", "skipped_share",
    "accumulation_loss", "positions_wrong", "hollow",
)  # fmt: skip
"""Measured numbers that say what a mistake did, the one first that tells most."""
SINGULAR = frozenset({"loss"})
MOST = 2
"""Other mistakes than a role's dtype that a headline names."""


def headline(report: Report, table: Sequence[Row]) -> str:
    """`2 errors: master weights and optimizer state are bfloat16; 27 % of non-zero updates were rounded away`."""
    said = words.verdict(report)
    shown = words.loud(report)
    if not shown:
        if report.status != "clean":
            return said
        seen = sum(bool(row.tensors) for row in table)
        were = "was seen" if seen == 1 else "were seen, each"
        return f"{said}: {words.plural(seen, 'role')} {were} in a dtype that it may have" if table else said
    worst = [f for f in shown if f.severity is shown[0].severity]
    clauses = [*_low_roles(worst, table), *_others(worst, table)]
    if damage := _damage(worst):
        clauses.append(damage)
    return f"{_counts(report) if report.status == 'findings' else said}: {'; '.join(clauses)}"


def _counts(report: Report) -> str:
    counted = ((words.count_of(report, s), s.value) for s in (Severity.ERROR, Severity.WARNING))
    return ", ".join(words.plural(count, name) for count, name in counted if count)


def _held_low(finding: Finding, table: Sequence[Row]) -> Row | None:
    """The row of the role whose low dtype this finding is about: a loss in float32 may be NaN, too."""
    return next(
        (
            row
            for row in table
            if row.role == finding.role
            and row.verdict == "violation"
            and finding.dtype in row.tensors
            and finding.dtype in LOW
        ),
        None,
    )


def _low_roles(findings: Iterable[Finding], table: Sequence[Row]) -> list[str]:
    """One clause for each low dtype, with the roles that hold it."""
    roles: dict[str, list[str]] = {}
    for finding in findings:
        row = _held_low(finding, table)
        if row is not None and row.label not in roles.setdefault(finding.dtype, []):
            roles[finding.dtype].append(row.label)
    return [f"{_listed(names)} {_verb(names)} {dtype}" for dtype, names in roles.items()]


def _others(findings: Iterable[Finding], table: Sequence[Row]) -> list[str]:
    """What else is wrong, in the findings' own words up to their first colon."""
    said = dict.fromkeys(f.message.partition(": ")[0] for f in findings if _held_low(f, table) is None)
    left = len(said) - MOST
    return [*list(said)[:MOST], *([f"and {left} more"] if left > 0 else [])]


def _damage(findings: Sequence[Finding]) -> str:
    for name in DAMAGE:
        for finding in findings:
            if finding.evidence.get(name, 0.0) > 0:
                return words.visible(sentence(name, finding.evidence[name]))
    return ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verb(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 or (names[0].endswith("s") and names[0] not in SINGULAR) else "is"
