"""One line per finding, as editors and grep read it."""

from __future__ import annotations

from precaudit.model.wire import Report
from precaudit.report import View, words


def render(report: Report, view: View) -> str:
    """`train.py:42:17: PA301 error optimizer state is bfloat16 [low-precision-optimizer-state]`, and a closing line."""
    lines = []
    for finding in words.loud(report, view.verbosity):
        at = words.place(finding) or words.visible(finding.module) or "-"
        what = f"{finding.rule} {finding.severity.value}{words.mark(finding)}"
        lines.append(f"{at}: {what} {words.visible(finding.message)} [{finding.name}]")
    for finding in words.allowed(report):
        at = words.place(finding) or words.visible(finding.module) or "-"
        lines.append(f"{at}: {finding.rule} allowed {words.excuse(finding)} [{finding.name}]")
    if view.verbosity >= 0:
        lines.append(words.one_line(words.closing(report, view.verbosity, view.show_again)))
    return "".join(f"{line}\n" for line in lines)
