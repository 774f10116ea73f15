"""GitHub workflow commands: one annotation per finding.

Source: https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from pathlib import Path

from precaudit.model.wire import Finding, Report, Severity
from precaudit.report import View, words
from precaudit.report.repository import relative, repository
from precaudit.report.source import Source

LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def render(report: Report, view: View) -> str:
    """`::error file=train.py,line=42,…::message` per finding, then the verdict as a plain line."""
    top = repository(view.root)
    source = Source(view.root)
    shown = [*words.loud(report, view.verbosity), *words.allowed(report)]
    lines = [_command(finding, view, top, source) for finding in shown]
    return "".join(
        f"{line}\n" for line in [*lines, words.one_line(words.closing(report, view.verbosity, view.show_again))]
    )


def _command(finding: Finding, view: View, top: Path, source: Source) -> str:
    where: dict[str, str | int | None] = {}
    if finding.path:
        where["file"] = relative(finding.path, view.root, top)
        line, same = finding.line, finding.end_line in (None, finding.line)
        where["line"] = source.in_file(finding, line, 1)[0] if line else None
        if line and same:
            where["col"] = finding.column and source.in_file(finding, line, finding.column)[1]
            where["endColumn"] = finding.end_column and source.in_file(finding, line, finding.end_column)[1]
        where["endLine"] = finding.end_line and source.in_file(finding, finding.end_line, 1)[0]
    where["title"] = f"{finding.rule} {finding.name}"
    body = [words.excuse(finding) if finding.because else finding.message, *words.evidence(finding)]
    if finding.cause:
        at = words.place(finding.cause)
        body.append(f"cause: {finding.cause.text}" + (f" ({at})" if at else ""))
    text = words.visible(words.in_cell(finding) + "; ".join(body)) + (
        f"\nfix: {words.visible(finding.fix)}" if finding.fix else ""
    )
    properties = ",".join(f"{key}={_property(str(value))}" for key, value in where.items() if value)
    level = LEVELS[Severity.NOTE if finding.because else finding.severity]
    return f"::{level} {properties}::{_data(text)}"


def _data(text: str) -> str:
    return words.encodable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
