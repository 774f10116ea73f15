"""GitHub workflow commands: one annotation per finding.

Source: https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from pathlib import Path

from precaudit.model.wire import Finding, Report, Severity
from precaudit.report import View, words
from precaudit.report.repository import relative, repository

LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def render(report: Report, view: View) -> str:
    """`::error file=train.py,line=42,…::message` per finding, then the verdict as a plain line."""
    top = repository(view.root)
    lines = [_command(finding, view, top) for finding in words.loud(report, view.verbosity)]
    return "".join(f"{line}\n" for line in [*lines, words.one_line(words.closing(report, view.verbosity))])


def _command(finding: Finding, view: View, top: Path) -> str:
    where: dict[str, str | int | None] = {}
    if finding.path:
        where["file"] = relative(finding.path, view.root, top)
        where["line"] = finding.line
        if finding.line and finding.end_line in (None, finding.line):
            where["col"] = finding.column
            where["endColumn"] = finding.end_column
        where["endLine"] = finding.end_line
    where["title"] = f"{finding.rule} {finding.name}"
    body = [finding.message, *words.evidence(finding)]
    if finding.cause:
        at = words.place(finding.cause)
        body.append(f"cause: {finding.cause.text}" + (f" ({at})" if at else ""))
    text = words.visible("; ".join(body)) + (f"\nfix: {words.visible(finding.fix)}" if finding.fix else "")
    properties = ",".join(f"{key}={_property(str(value))}" for key, value in where.items() if value)
    return f"::{LEVELS[finding.severity]} {properties}::{_data(text)}"


def _data(text: str) -> str:
    return words.encodable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
