"""Groups findings into stories: one cause, the worst thing it did, and its consequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from precaudit.model.wire import Finding


class Story(NamedTuple):
    """Findings that one change mends."""

    lead: Finding
    consequences: list[Finding]


def stories(findings: Iterable[Finding], *, by_rule: bool) -> list[Story]:
    """The findings in their order, those with the same cause line together under the first of them.

    `by_rule` also puts findings without a cause under the first of the same rule.
    """
    told: dict[tuple[str, ...], Story] = {}
    for index, finding in enumerate(findings):
        key = _key(finding, index, by_rule)
        if key in told:
            told[key].consequences.append(finding)
        else:
            told[key] = Story(finding, [])
    return list(told.values())


def _key(finding: Finding, index: int, by_rule: bool) -> tuple[str, ...]:
    cause = finding.cause
    if cause is not None and cause.path and cause.line:
        return ("cause", cause.path, str(cause.line))
    return ("rule", finding.rule) if by_rule else ("alone", str(index))
