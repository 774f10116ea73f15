"""Compares two reports of one training: what changed its dtype, size or values, which findings came and went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from precaudit.contracts.drift import Change, compare
from precaudit.contracts.precision import of_report, script_of
from precaudit.errors import ReportError
from precaudit.launch.gather import RUNS
from precaudit.model.exact import ExactLine
from precaudit.model.wire import Finding, Report

MOST = 3
"""Values of one kind that are named."""


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
    values: tuple[str, ...]
    """What two exact steps gave otherwise, by more than both of them lost to rounding; one line each."""


def difference(one: Report, other: Report, names: tuple[object, object] = ("A", "B")) -> Difference:
    """What the second says otherwise. Raises ReportError for two that are of different things."""
    if why := _apart(one, other):
        raise ReportError(f"{names[0]} and {names[1]} are not of one training: {why}; name two reports of one script")
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
        tuple(_values(one, other)),
    )


def _values(one: Report, other: Report) -> Iterator[str]:
    """The norms of what two exact steps gave, where they differ by more than the rounding errors of both together."""
    if one.exact is None or other.exact is None:
        return
    if one.exact.step != other.exact.step:
        yield f"values were not compared: one followed step {one.exact.step}, the other step {other.exact.step}"
        return
    before = {(line.what, line.name): line for line in one.exact.budget}
    apart: dict[str, list[str]] = {}
    together: dict[str, int] = {}
    for line in other.exact.budget:
        then = before.get((line.what, line.name))
        if then is None or not (_measured(then) and _measured(line)):
            continue
        together[line.what] = together.get(line.what, 0) + 1
        was, now, off = then.size or 0.0, line.size or 0.0, (then.absolute or 0.0) + (line.absolute or 0.0)
        if abs(now - was) > off:
            what = f"{line.what} of {line.name}" if line.name else line.what
            rounding = f"{then.absolute or 0.0:.2g} and {line.absolute or 0.0:.2g}"
            apart.setdefault(line.what, []).append(
                f"{what} was {was:.6g}, is {now:.6g}; rounding explains {rounding} of that"
            )
    for what, lines in apart.items():
        yield from lines[:MOST]
        if len(lines) > MOST:
            yield f"{what}: {len(lines) - MOST} more of {together[what]} differ by more than rounding explains"


def _measured(line: ExactLine) -> bool:
    """Whether a norm and its error are known, and all that went into it was followed."""
    return line.size is not None and line.absolute is not None and not line.partial and not line.nil


def _apart(one: Report, other: Report) -> str:
    if one.command != other.command:
        return f"one is of precaudit {one.command}, the other of precaudit {other.command}"
    if one.command == "checkpoint":
        mine, theirs = ({row.name for row in report.inventory} for report in (one, other))
        return "no tensor of one has the name of any of the other" if mine and theirs and not mine & theirs else ""
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
    return {_key(finding, report.command): _line(finding) for finding in report.findings if not finding.suppressed}


def _key(finding: Finding, command: str) -> tuple[str, str, str, str]:
    place = "" if command == "checkpoint" else finding.path or ""
    return finding.rule, place, finding.role or "", finding.dtype


def _line(finding: Finding) -> str:
    line = f":{finding.line}" if finding.line else ""
    place = f" {finding.path}{line}" if finding.path else ""
    return f"{finding.severity.value} {finding.rule}{place} {finding.message}"
