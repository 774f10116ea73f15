"""GitLab's Code Quality report.

Source: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter

from precaudit.model.wire import Report, Severity
from precaudit.report import View, words
from precaudit.report.repository import relative, repository
from precaudit.report.source import Source

LEVELS = {Severity.ERROR: "critical", Severity.WARNING: "major", Severity.NOTE: "info"}


def render(report: Report, view: View) -> str:
    """A list of issues, notes included, allowed ones as info, suppressed ones not; every fingerprint is used once."""
    top, source = repository(view.root), Source(view.root)
    seen: Counter[str] = Counter()
    issues = []
    for finding in [*words.loud(report, verbosity=1), *words.allowed(report)]:
        path = relative(finding.path, view.root, top) if finding.path else finding.module or "."
        base = finding.fingerprint or hashlib.sha256(f"{finding.rule}{path}{finding.message}".encode()).hexdigest()[:16]
        seen[base] += 1
        line = finding.line or 1
        issues.append(
            {
                "description": f"{finding.rule} {words.in_cell(finding)}"
                + (words.excuse(finding) if finding.because else finding.message),
                "check_name": finding.name,
                "fingerprint": base if seen[base] == 1 else f"{base}-{seen[base]}",
                "severity": LEVELS[Severity.NOTE if finding.because else finding.severity],
                "location": {
                    "path": path,
                    "lines": {
                        "begin": source.in_file(finding, line, 1)[0],
                        "end": source.in_file(finding, finding.end_line or line, 1)[0],
                    },
                },
                "content": {"body": finding.fix},
            }
        )
    return json.dumps(issues, indent=2) + "\n"
