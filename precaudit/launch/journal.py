"""The events of a run that is watched, a JSON line each: it began, a window closed, a finding came, it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from precaudit.launch.identity import Started
from precaudit.model.wire import Finding, Report, Severity


class Journal:
    """Is given each report of a run, and tells what the last one did not say yet; `tell` puts a line away."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._traced: set[int] = set()
        self._notes: set[str] = set()
        self._findings: dict[tuple[object, ...], Severity] = {}

    def began(self, started: Started) -> None:
        """The first line: which run this is."""
        self._line("began", run=started.id, argv=list(started.argv), cwd=started.cwd)

    def take(self, report: Report) -> None:
        """What is new in a report on a run that goes on, or is over."""
        told = self._traced | set(report.coverage.traced_steps)
        if told != self._traced:
            self._line("window", steps=sorted(told - self._traced))
            self._traced = told
        for finding in report.findings:
            key = (finding.rule, finding.path, finding.line, finding.dtype, finding.suppressed)
            before = self._findings.get(key)
            if before is None or before.rank < finding.severity.rank:
                self._line("finding", **_told(finding))
                self._findings[key] = finding.severity
        for note in report.coverage.notes:
            if note not in self._notes and not note.startswith("the command runs on"):
                self._notes.add(note)
                self._line("note", text=note)

    def ended(self, report: Report, code: int) -> None:
        """The last line: what it came to, and the exit code."""
        self.take(report)
        counts = [report.status, sum(not finding.suppressed for finding in report.findings)]
        self._line("ended", status=counts[0], findings=counts[1], steps=report.coverage.attempts, exit_code=code)

    def _line(self, event: str, **more: Any) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with suppress(OSError):  # a folder that went: the report tells everything again
            self._tell(json.dumps({"time": at, "event": event, **more}))


def _told(finding: Finding) -> dict[str, Any]:
    keys = ("rule", "name", "severity", "message", "path", "line", "role", "dtype", "suppressed")
    return finding.model_dump(mode="json", include=set(keys))
