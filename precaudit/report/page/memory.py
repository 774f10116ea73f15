"""Memory by role: as it was, as the role table wants it, and as low as the table lets it be."""

from __future__ import annotations

from typing import NamedTuple

from precaudit import rulebook
from precaudit.model.vocabulary import FLOATING, Role
from precaudit.model.wire import Report, RoleSummary
from precaudit.report import words
from precaudit.report.page.parts import bar, chip, e, section, wide


class Sizes(NamedTuple):
    """Bytes of one role on one rank."""

    label: str
    dtypes: dict[str, int]
    """Dtype -> bytes of it, as it was."""
    wanted: float
    lowest: float

    @property
    def now(self) -> int:
        return sum(self.dtypes.values())


def memory(report: Report) -> str:
    """A row for each role that takes memory; nothing where none is known to."""
    found = sizes(report)
    if not found:
        return ""
    most = max(max(one.now, one.wanted) for one in found)
    rank = " of one rank" if report.coverage.ranks > 1 else ""
    body = "".join(
        f"<tr><th scope=row>{e(one.label)}</th><td>{' '.join(chip(dtype) for dtype in one.dtypes)}</td>"
        + "".join(f"<td class=size>{_measured(size, most)}</td>" for size in (one.now, one.wanted, one.lowest))
        + "</tr>"
        for one in found
    )
    head = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("Role", "Held", "As it is", "As the rules want it", "As low as may be")
    )
    note = (
        "One memory may play two roles, as weights do that are trained and computed with: the rows do not add up. "
        "As low as may be: what may have any dtype, in 16 bits."
    )
    return section(
        "memory",
        f"Memory by role{rank}",
        [wide("memory-title", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"), f"<p class=dim>{note}</p>"],
    )


def sizes(report: Report) -> list[Sizes]:
    """The roles that take memory, in the order of the table."""
    table = rulebook.load().roles
    known = {role.value: row for role, row in table.items()}
    grouped: dict[str, list[RoleSummary]] = {}
    for row in report.roles:
        if row.bytes and row.dtype:
            grouped.setdefault(row.role, []).append(row)
    found = []
    for role, held in grouped.items():
        one = known.get(role)
        label = table[Role(role)].label if one else role.replace("_", " ")
        free = one is None or one.wanted == ["any"]
        wanted = sum(row.bytes if free else _as_wanted(row) for row in held)
        lowest = sum(row.bytes * min(1.0, 16 / _bits(row.dtype)) for row in held) if free else wanted
        dtypes: dict[str, int] = {}
        for row in held:
            dtypes[str(row.dtype)] = dtypes.get(str(row.dtype), 0) + row.bytes
        found.append(Sizes(label, dtypes, wanted, lowest))
    return found


def _as_wanted(row: RoleSummary) -> float:
    """In float32 what breaks a rule; what is allowed as it is stays."""
    return row.bytes * max(1.0, 32 / _bits(row.dtype)) if row.verdict == "violation" else row.bytes


def _bits(dtype: str | None) -> int:
    facts = FLOATING.get(dtype or "")
    return facts.bits if facts is not None else 16


def _measured(size: float, most: float) -> str:
    return f"{bar(size / most)}<span>{words.size(round(size))}</span>"
