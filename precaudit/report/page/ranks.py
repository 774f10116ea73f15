"""Ranks side by side: groups of ranks that held the same, and the roles in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

from precaudit import rulebook
from precaudit.model.vocabulary import Role
from precaudit.model.wire import Report
from precaudit.report.page.parts import chip, e, section, wide

MOST = 8
"""Groups that have a column."""


def ranks(report: Report) -> str:
    """A column for each group of ranks; nothing where there was one rank."""
    groups = report.by_rank[:MOST]
    if not groups:
        return ""
    if len(report.by_rank) == 1:
        said = f"All {len(groups[0].ranks)} ranks held the same dtypes in every role that is compared."
        return section("ranks", "Ranks", [f"<p>{said}</p>"])
    roles = list(dict.fromkeys(role for group in groups for role in group.roles))
    head = "".join(f"<th scope=col>{e(_named(group.ranks))}</th>" for group in groups)
    body = []
    for role in roles:
        held = [group.roles.get(role, []) for group in groups]
        differs = len({tuple(one) for one in held}) > 1
        cells = "".join(f"<td>{' '.join(chip(d) for d in one) or '<span class=dim>–</span>'}</td>" for one in held)
        sign = "<span class='badge error'>≠ differs</span>" if differs else ""
        body.append(f"<tr><th scope=row>{e(_label(role))}</th>{cells}<td>{sign}</td></tr>")
    left = len(report.by_rank) - len(groups)
    more = [f"<p class=dim>{left} more groups of ranks are in the JSON report.</p>"] if left else []
    content = f"<thead><tr><th scope=col>Role</th>{head}<th scope=col></th></tr></thead><tbody>{''.join(body)}</tbody>"
    return section("ranks", "Ranks", [wide("ranks-title", content), *more])


def _named(numbers: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"


def _label(role: str) -> str:
    table = rulebook.load().roles
    known = {one.value for one in table}
    return table[Role(role)].label if role in known else role.replace("_", " ")
