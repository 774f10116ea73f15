"""The JSON report, format_version 1, as one document or as one object per line."""

from __future__ import annotations

import json
from typing import Any

from precaudit.model.wire import Report
from precaudit.report import View


def render(report: Report, view: View) -> str:
    """The whole report as one JSON object, every key always there."""
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def render_lines(report: Report, view: View) -> str:
    """One object per line, told apart by `type`: one `report`, then `finding`s worst first, `role`s and `fact`s."""
    whole = report.model_dump(mode="json")
    lists = {"finding": whole.pop("findings"), "role": whole.pop("roles"), "fact": whole.pop("facts")}
    lines: list[dict[str, Any]] = [{"type": "report", **whole}]
    lines += [{"type": kind, **item} for kind, items in lists.items() for item in items]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
