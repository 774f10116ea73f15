"""One level of names and values, as experiment trackers take them: `precision/optimizer_state = float32`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from precaudit.model.evidence import worst
from precaudit.model.wire import Report
from precaudit.report import View

Flat = dict[str, str | int | float]


def flat(report: Report) -> Flat:
    """The report's status, counts, dtypes by role and measured numbers, under names that start with `precision/`.

    A role that held several dtypes names them all, most tensors first: "bfloat16, float32". A number is the worst of
    those that were measured, under its rule: `precision/PA101/updates_lost`.
    """
    loud = Counter(f.severity.value for f in report.findings if not f.suppressed)
    values: Flat = {
        "precision/status": report.status,
        "precision/errors": loud["error"],
        "precision/warnings": loud["warning"],
        "precision/steps": report.coverage.steps,
    }
    held: dict[str, list[tuple[int, str]]] = {}
    for row in report.roles:
        if row.dtype is not None:
            held.setdefault(row.role, []).append((-row.tensors, row.dtype))
    for role, dtypes in held.items():
        values[f"precision/{role}"] = ", ".join(dtype for _, dtype in sorted(dtypes))
    measured: dict[str, Mapping[str, float]] = {}
    for finding in report.findings:
        if not finding.suppressed:
            measured[finding.rule] = worst(measured.get(finding.rule, {}), finding.evidence)
    for rule, numbers in sorted(measured.items()):
        values.update({f"precision/{rule}/{name}": value for name, value in numbers.items()})
    return values


def render(report: Report, view: View) -> str:
    """One line for each: `precision/optimizer_state = "float32"`, the values as JSON writes them."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in flat(report).items())
