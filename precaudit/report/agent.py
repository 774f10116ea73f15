"""One line per finding for a coding agent: rule, place, what is wrong, measured, the edit, how to verify; no table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from precaudit.model.wire import Finding, Report
from precaudit.report import View, words
from precaudit.report.roles import rows, unseen
from precaudit.report.source import Source
from precaudit.report.stories import stories


def render(report: Report, view: View) -> str:
    """The verdict, one line per finding, and what is not known, each a line of `name: text` fields.

        PA101 error train.py:21:17 | wrong: … | measured: … | code: … | cause: … | edit: … | verify: precaudit trace …

    Findings of one cause stand together, the one to mend first; those that its edit mends say so.
    """
    source = Source(view.root)
    lines = [_line([f"precaudit {report.command}: {report.status}", *words.opening(report), words.verdict(report)])]
    for story in stories(words.loud(report, view.verbosity), by_rule=False):
        lines.append(_finding(story.lead, None, source, report))
        lines += [_finding(finding, story.lead, source, report) for finding in story.consequences]
    for finding in words.allowed(report):
        at = words.place(finding) or finding.module or "-"
        lines.append(_line([f"{finding.rule} allowed {at}", words.excuse(finding), "edit: none"]))
    # A table would give silence a row; here it must be said that it is no verdict.
    if reasons := unseen(rows(report), report):
        told = [f"{name} ({why})" if why else name for name, why in reasons.items()]
        lines.append(_line(["unknown: not observed, neither right nor wrong", *told]))
    lines += [_line([f"skipped: {path}"]) for path in report.coverage.skipped]
    lines += [_line([f"note: {note}"]) for note in report.coverage.notes]
    if words.loud(report, view.verbosity):
        lines.append(
            "next: make the edits from the top, verify after each; `precaudit rules ID` has why, the wrong and the "
            "right code, and when to ignore a rule"
        )
    return "".join(f"{line}\n" for line in lines)


def _line(fields: Sequence[str]) -> str:
    """Fields in one line; what stands between them is in none of them."""
    return " | ".join(" ".join(field.split()).replace(" | ", " ¦ ") for field in fields)


def _finding(finding: Finding, lead: Finding | None, source: Source, report: Report) -> str:
    at = words.place(finding) or finding.module or "-"
    fields = [f"{finding.rule} {finding.severity.value} {at}", f"wrong: {finding.message}"]
    if measured := words.evidence(finding):
        fields.append(f"measured: {'; '.join(measured)}")
    if code := words.visible((source.line_of(finding) or "").strip()):
        fields.append(f"code: {code}")
    if finding.cause:
        where = words.place(finding.cause)
        fields.append(f"cause: {finding.cause.text}" + (f", {where}" if where else ""))
    if lead is not None and finding.fix == lead.fix:
        fields.append(f"edit: the one for {lead.rule} at {words.place(lead) or lead.module or '-'}")
    else:
        fields.append(f"edit: {finding.fix}" + (" (precaudit check --fix does it)" if finding.fixable else ""))
    if price := words.cost(finding, report.coverage.ranks):
        fields.append(f"memory: {price}")
    fields.append(f"verify: {_verify(finding, report)}")
    return _line(fields)


def _verify(finding: Finding, report: Report) -> str:
    """The command whose report no longer has the finding once it is mended."""
    if report.command == "check":
        path = shlex.quote(finding.path) if finding.path else "."
        return f"precaudit check {path} --select {finding.rule}"
    if report.command == "checkpoint":
        return f"save again, then precaudit checkpoint: no {finding.rule}"
    typed = list(report.run.argv) if report.run is not None else []
    if len(typed) > 1 and PurePath(typed[0]).name.startswith("python"):
        del typed[0]  # precaudit finds the Python itself, as it did
    again = f"precaudit {'preflight' if report.preflight else 'trace'} {shlex.join(typed)}" if typed else "trace again"
    return f"{again}: no {finding.rule}"
