"""SARIF 2.1.0 as GitHub code scanning accepts it.

Sources: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html and
https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from precaudit import rulebook
from precaudit.errors import RuleError
from precaudit.model.wire import Finding, Line, Report, Severity
from precaudit.report import View, words
from precaudit.report.jsonformats import finite
from precaudit.report.repository import relative, repository
from precaudit.report.rulepage import plain_page, rule_markdown
from precaudit.report.source import Source

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
NOWHERE = "unknown-location"
"""GitHub refuses a whole upload for one result without a file; this stands for a place that is not known."""


def render(report: Report, view: View) -> str:
    """One run; every finding a result, suppressed ones marked so. Places are relative to the repository."""
    top = repository(view.root)
    source = Source(view.root)
    ids = list(dict.fromkeys(finding.rule for finding in report.findings))
    seen: Counter[str] = Counter()
    results = [_result(finding, ids, seen, view, top, source) for finding in report.findings]
    failed = report.status in ("inconclusive", "script-failed")
    notices = [words.verdict(report)] if failed else []
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": report.tool.name,
                "version": report.tool.version,
                "semanticVersion": report.tool.version,
                "rules": [_rule(name) for name in ids],
            }
        },
        # The category of code scanning: without one each upload of a commit takes the place of the others.
        "automationDetails": {"id": f"precaudit/{report.command}/"},
        "invocations": [
            {
                "executionSuccessful": not failed,
                "toolExecutionNotifications": [
                    {"level": "warning", "message": {"text": text}} for text in [*notices, *report.coverage.notes]
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return words.encodable(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _rule(name: str) -> dict[str, Any]:
    try:
        rule = rulebook.load().find(name)
    except RuleError:
        return {"id": name}
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": " ".join(rule.why.split())},
        "help": {"text": plain_page(rule), "markdown": rule_markdown(rule)},
        "helpUri": rule.references[0],
        "defaultConfiguration": {"level": rule.severity.value},
        "properties": {
            "tags": ["precision", "training"],
            "precision": "high",
            "problem.severity": _problem(rule.severity),
        },
    }


def _problem(severity: Severity) -> str:
    return "recommendation" if severity is Severity.NOTE else severity.value


def _result(
    finding: Finding, ids: list[str], seen: Counter[str], view: View, top: Path, source: Source
) -> dict[str, Any]:
    told = [finding.message, *words.evidence(finding), *([finding.why.rstrip(".")] if finding.why else [])]
    text = words.in_cell(finding) + "; ".join(told) + (f"\nFix: {finding.fix}" if finding.fix else "")
    location: dict[str, Any] = {"physicalLocation": _place(finding, view, top, source)}
    if finding.module:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.module, "kind": "module"}]
    seen[finding.fingerprint] += 1
    fingerprint = f"{finding.fingerprint}:{seen[finding.fingerprint]}"
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": ids.index(finding.rule),
        "level": finding.severity.value,
        "message": {"text": _message(text)},
        "locations": [location],
        "partialFingerprints": {"primaryLocationLineHash": fingerprint, "precaudit/v1": fingerprint},
        "properties": {"role": finding.role, "dtype": finding.dtype, "evidence": finite(finding.evidence)},
    }
    if finding.cause and finding.cause.path:
        related = {"physicalLocation": _place(finding.cause, view, top, source)}
        result["relatedLocations"] = [{"id": 1, **related, "message": {"text": _message(finding.cause.text)}}]
    if finding.because:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.because}]
    elif finding.suppressed:
        result["suppressions"] = [{"kind": "inSource"}]
    return result


def _place(at: Finding | Line, view: View, top: Path, source: Source) -> dict[str, Any]:
    """A one-line region with both ends, taken from the source where the finding does not give them."""
    uri = quote(relative(at.path, view.root, top), errors="surrogateescape") if at.path else NOWHERE
    line = at.line or 1
    text = source.line(at.path, line, at.cell)
    ends = len(text.rstrip()) + 1 if text is not None else 0
    start = at.column or (len(text) - len(text.lstrip()) + 1 if text and text.strip() else 1)
    end = 0
    if isinstance(at, Finding) and at.end_line in (None, line):
        end = at.end_column or 0
    end = max(end or ends, start + 1)
    _, end = source.in_file(at, line, end)
    line, start = source.in_file(at, line, start)
    return {
        "artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": line, "startColumn": start, "endLine": line, "endColumn": end},
    }


def _message(text: str) -> str:
    """Message text in which no name from outside becomes one of SARIF's embedded links, `[text](target)`."""
    return text.replace("](", "] (")
