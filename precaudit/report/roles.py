"""The role table as rows for people: one row per role, one number per dtype, one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from precaudit import rulebook
from precaudit.model.vocabulary import Kind, Role
from precaudit.model.wire import Report, Severity
from precaudit.report.words import visible

ALWAYS = ("float32", "bfloat16", "float16")
"""Dtypes that have a column even where nothing held them."""
WORST_FIRST = ("violation", "allowed", "ok", "not-observed")


class Row(NamedTuple):
    """One role of the report."""

    role: str
    label: str
    wanted: str
    """The dtype the table wants, or "any"."""
    tensors: dict[str, int]
    """Dtype -> tensors that held it."""
    bytes: int
    verdict: str
    """violation, allowed, ok or not-observed: the worst of the role's dtypes."""
    rules: list[str]
    """Ids of the errors and warnings of this role, worst first."""
    worst: Severity | None
    why_not: str
    """Why the role was not observed, where the trace knows more than that nothing of the kind ran."""
    seen_with: str
    """What has to run for the role to be seen."""
    because: dict[str, list[str]]
    """Dtype -> why it is allowed although the table wants more."""


def rows(report: Report) -> list[Row]:
    """One row per role the report names, in the order of the role table."""
    grouped: dict[str, Row] = {}
    table = rulebook.load().roles
    for summary in report.roles:
        known = table.get(Role(summary.role)) if summary.role in {role.value for role in table} else None
        row = grouped.get(summary.role)
        if row is None:
            mine = [
                f
                for f in report.findings
                if f.role == summary.role and not f.suppressed and f.severity is not Severity.NOTE
            ]
            mine.sort(key=lambda f: -f.severity.rank)
            row = Row(
                role=summary.role,
                label=known.label if known else visible(summary.role.replace("_", " ")),
                wanted=known.wanted[0] if known else "any",
                tensors={},
                bytes=0,
                verdict="not-observed",
                rules=list(dict.fromkeys(f.rule for f in mine)),
                worst=mine[0].severity if mine else None,
                why_not=report.coverage.not_observed.get(summary.role, ""),
                seen_with=known.seen_with if known else "",
                because={},
            )
        if summary.dtype:
            dtype = visible(summary.dtype)
            row.tensors[dtype] = row.tensors.get(dtype, 0) + summary.tensors
            if summary.because:
                row.because[dtype] = summary.because
        worse = min(row.verdict, summary.verdict, key=WORST_FIRST.index)
        grouped[summary.role] = row._replace(bytes=row.bytes + summary.bytes, verdict=worse)
    spread = non_finite(report)
    return [
        row._replace(rules=spread, worst=Severity.ERROR)
        if spread and row.verdict == "violation" and not row.rules
        else row
        for row in grouped.values()
    ]


def non_finite(report: Report) -> list[str]:
    """The rule of NaN and inf, where it speaks: one finding tells of all roles that they have reached."""
    book = rulebook.load().rules
    loud = (f.rule for f in report.findings if not f.suppressed and f.severity is not Severity.NOTE)
    return list(dict.fromkeys(r for r in loud if r in book and book[r].fact is Kind.NON_FINITE))


def columns(table: list[Row]) -> list[str]:
    """The dtypes that have a column: the usual three, then every other one that was held."""
    held = {dtype for row in table for dtype in row.tensors}
    return [*ALWAYS, *sorted(held - set(ALWAYS))]


BECAUSE: Mapping[str, str] = {
    "kahan": "what each update loses to rounding is carried to the next one (Kahan summation)",
    "stochastic-rounding": "updates are rounded stochastically, so that small ones count on average",
    "block-wise": "it is stored block-wise with scales of its own and de-quantised for each update",
    "float32-master": "float32 masters stand beside it",
    "adapter-only": "only adapters are trained",
    "harmless": "in the traced steps it did no harm that was measured",
    "note": "what was found there is a note, shown with -v",
    "silenced": "a comment in the code or the baseline silences what was found there",
}
"""Why a rule lets something pass, in words."""


def allowed(table: list[Row]) -> dict[str, str]:
    """What holds less than the table wants and may: "optimizer state in uint8" -> why."""
    return {
        f"{row.label} in {dtype}": "; ".join(BECAUSE.get(reason, visible(reason)) for reason in reasons)
        for row in table
        for dtype, reasons in row.because.items()
    }


def unseen(table: list[Row], report: Report) -> dict[str, str]:
    """Everything the trace did not observe -> why, or what would have to run to see it."""
    listed = {row.label: row for row in table if row.verdict == "not-observed"}
    reasons = {name: row.why_not or (row.seen_with and f"needs {row.seen_with}") for name, row in listed.items()}
    return reasons | unlisted(report)


def unlisted(report: Report) -> dict[str, str]:
    """What was not observed although it is no row of the table: checkpointing, evaluation, … -> why."""
    listed = {summary.role for summary in report.roles}
    names = ((name, why) for name, why in report.coverage.not_observed.items() if name not in listed)
    return {name.replace("_", " "): why for name, why in names}
