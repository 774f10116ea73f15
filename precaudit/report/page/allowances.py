"""What the contract in pyproject.toml allows, on the page."""

from __future__ import annotations

from precaudit.model.wire import Report
from precaudit.report import words
from precaudit.report.page.parts import e, section


def allowances(report: Report) -> str:
    """Each finding that is allowed, with its place and the reason."""
    told = [
        f"<li>{e(f.rule)} <code>{e(words.place(f))}</code> {e(words.excuse(f))}</li>" for f in words.allowed(report)
    ]
    return section("allowed", "Allowed", ["<ul>", *told, "</ul>"]) if told else ""
