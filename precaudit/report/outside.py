"""Makes every string of a report harmless where people read it: a report, a path or a name may come from anywhere."""

from __future__ import annotations

import re
from typing import Any

from precaudit.model.wire import Report
from precaudit.report.words import visible

COMMAND = re.compile(r"(^|\s):(?=:[a-zA-Z])|#(?=#\[)")
"""How a line begins that GitHub's runner obeys, wherever it stands in a log: `::error …`, `##[error]…`."""
PARAGRAPHS = frozenset({"fix", "why"})
"""Texts of several lines; each format lays them out itself."""


def harmless(report: Report) -> Report:
    """The report without control and bidirectional characters, new lines in names, and workflow commands.

    What stands for one is seen: `\\x1b[31m`. The escapes of a format's own language are left to the format.
    """
    raw = report.model_dump(exclude={"facts"})
    shown = _harmless(raw, "")
    return report if shown == raw else Report.model_validate(shown)


def _harmless(value: Any, key: str) -> Any:
    if isinstance(value, str):
        lines = value.split("\n") if key in PARAGRAPHS else [value]
        return "\n".join(COMMAND.sub(_escaped, visible(line)) for line in lines)
    if isinstance(value, dict):
        return {_harmless(name, ""): _harmless(inner, name) for name, inner in value.items()}
    return [_harmless(inner, key) for inner in value] if isinstance(value, list) else value


def _escaped(match: re.Match[str]) -> str:
    return f"{match[1] or ''}\\x{ord(match[0][-1]):02x}"
