"""Compares two reports of one training: what changed its dtype or its size, which findings came and which went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precaudit.contracts.drift import Change, compare
from precaudit.contracts.precision import of_report, script_of
from precaudit.errors import ReportError
from precaudit.launch.gather import RUNS, read_report
from precaudit.model.wire import Finding, Report


@dataclass(frozen=True, slots=True)
class Difference:
    """What the second report says otherwise than the first."""

    changes: tuple[Change, ...]
    bytes_by_role: dict[str, tuple[int, int]]
    """Role -> bytes before and after on one rank, where they differ."""
    came: tuple[str, ...]
    """Findings that only the second has, one line each."""
    went: tuple[str, ...]
    versions: tuple[Change, ...]
    left_out: tuple[str, ...]


def difference(before: Path, after: Path) -> Difference:
    """Reads both. Raises ReportError for a file that is no report, and for two that are of different things."""
    one, other = read_report(before), read_report(after)
    if why := _apart(one, other):
        raise ReportError(f"{before} and {after} are not of one training: {why}; name two reports of one script")
    compared = compare(of_report(one), of_report(other))
    was, now = _bytes(one), _bytes(other)
    mine, theirs = _findings(one), _findings(other)
    return Difference(
        compared.changes,
        {role: (was.get(role, 0), now.get(role, 0)) for role in sorted({*was, *now}) if was.get(role) != now.get(role)},
        tuple(line for key, line in theirs.items() if key not in mine),
        tuple(line for key, line in mine.items() if key not in theirs),
        compared.versions,
        compared.left_out,
    )


def _apart(one: Report, other: Report) -> str:
    if one.command != other.command:
        return f"one is of precaudit {one.command}, the other of precaudit {other.command}"
    scripts = [script_of(report.run.argv) if report.run is not None else "" for report in (one, other)]
    if one.command in RUNS and all(scripts) and scripts[0] != scripts[1]:
        return f"one ran {scripts[0]}, the other {scripts[1]}"
    return ""


def _bytes(report: Report) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in report.roles:
        if row.bytes:
            found[row.role] = found.get(row.role, 0) + row.bytes
    return found


def _findings(report: Report) -> dict[tuple[str, str, str, str], str]:
    """By what stays the same when lines move: rule, file, role, dtype."""
    return {_key(finding): _line(finding) for finding in report.findings if not finding.suppressed}


def _key(finding: Finding) -> tuple[str, str, str, str]:
    return finding.rule, finding.path or "", finding.role or "", finding.dtype


def _line(finding: Finding) -> str:
    place = f" {finding.path}:{finding.line}" if finding.path else ""
    return f"{finding.severity.value} {finding.rule}{place} {finding.message}"
