"""The JSON report, format_version 1, as one document or as one object per line."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from precaudit.model.wire import Report
from precaudit.report import View
from precaudit.report.words import encodable


def render(report: Report, view: View) -> str:
    """The whole report as one JSON object, every key always there."""
    return encodable(json.dumps(finite(report.model_dump()), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The same JSON value with null for every inf and nan, which JSON cannot hold."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def render_lines(report: Report, view: View) -> str:
    """One object per line, told apart by `type`: one `report`, then `finding`s worst first, `role`s and `fact`s."""
    whole = finite(report.model_dump())
    lists = {"finding": whole.pop("findings"), "role": whole.pop("roles"), "fact": whole.pop("facts")}
    lines: list[dict[str, Any]] = [{"type": "report", **whole}]
    lines += [{"type": kind, **item} for kind, items in lists.items() for item in items]
    return encodable("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
