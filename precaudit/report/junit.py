"""JUnit XML, as CI servers read it: an error is a failure, a warning or a note is a skipped case with its text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from precaudit.model.wire import Finding, Report, Severity
from precaudit.report import View, words
from precaudit.report.repository import relative, repository
from precaudit.report.source import Source

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def render(report: Report, view: View) -> str:
    """One test case per finding; without any, one case that passed, or failed where nothing was examined."""
    shown = [*words.loud(report, verbosity=1), *words.allowed(report)]
    errors = sum(1 for finding in shown if finding.severity is Severity.ERROR and not finding.because)
    empty = report.status in ("inconclusive", "script-failed") and not shown
    suite = ElementTree.Element("testsuite", name=f"precaudit {report.command}")
    top, source = repository(view.root), Source(view.root)
    for finding in shown:
        path = relative(finding.path, view.root, top) if finding.path else ""
        _case(suite, finding, path, source.in_file(finding, finding.line or 0, 1)[0])
    if not shown:
        case = ElementTree.SubElement(suite, "testcase", classname="precaudit", name=report.command)
        if empty:
            text = _text("; ".join([words.verdict(report), *report.coverage.notes]))
            ElementTree.SubElement(case, "error", type=report.status, message=text)
    totals = {
        "tests": str(len(suite)),
        "failures": str(errors),
        "errors": str(int(empty)),
        "skipped": str(len(shown) - errors),
    }
    suite.attrib |= totals
    suites = ElementTree.Element("testsuites", totals | {"name": "precaudit"})
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, finding: Finding, path: str, line: int) -> None:
    at = words.place(finding) or finding.module or "unknown place"
    case = ElementTree.SubElement(
        suite, "testcase", classname=_text(path or finding.module or "precaudit"),
        name=_text(f"{finding.rule} {finding.name} {at}"),
    )  # fmt: skip
    if path:
        case.set("file", _text(path))
    if line:
        case.set("line", str(line))
    kind = "failure" if finding.severity is Severity.ERROR and not finding.because else "skipped"
    message = words.excuse(finding) if finding.because else finding.message
    told = ElementTree.SubElement(case, kind, message=_text(message))
    if kind == "failure":
        told.set("type", finding.rule)
    told.text = _text("\n".join([at, finding.message, *words.evidence(finding), f"fix: {finding.fix}"]))


def _text(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
