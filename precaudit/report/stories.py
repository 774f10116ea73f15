"""Groups findings into stories: one cause, the worst thing it did, and its consequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from precaudit.model.wire import Finding

Place = tuple[str, ...]


class Story(NamedTuple):
    """Findings that one change mends."""

    lead: Finding
    consequences: list[Finding]

    @property
    def of_one_cause(self) -> bool:
        """Whether a cause joins them, and not only their rule."""
        return any(_cause(finding) for finding in (self.lead, *self.consequences))


def stories(findings: Sequence[Finding], *, by_rule: bool) -> list[Story]:
    """The findings in their order, those of one cause together under the first of them.

    One cause have findings whose cause is the same line, and a finding that stands on a line which is another's cause.
    `by_rule` also puts findings that share a line with no other under the first of the same rule.
    """
    causes = {place for finding in findings if (place := _cause(finding))}
    story_at: dict[Place, int] = {}
    told: dict[int, list[Finding]] = {}
    for number, finding in enumerate(findings):
        own = _own(finding)
        places = [place for place in (_cause(finding), own if own in causes else None) if place]
        if not places and by_rule:
            places = [("rule", finding.rule)]
        mine = sorted({story_at[place] for place in places if place in story_at}) or [number]
        first = mine[0]
        members = told.setdefault(first, [])
        for other in mine[1:]:
            members += told.pop(other)
            story_at = {place: first if story == other else story for place, story in story_at.items()}
        members.append(finding)
        story_at |= dict.fromkeys(places, first)
    order = {id(finding): number for number, finding in enumerate(findings)}
    grouped = [sorted(members, key=lambda finding: order[id(finding)]) for members in told.values()]
    return [Story(members[0], members[1:]) for members in grouped]


def _cause(finding: Finding) -> Place | None:
    cause = finding.cause
    return (cause.path, str(cause.cell), str(cause.line)) if cause is not None and cause.path and cause.line else None


def _own(finding: Finding) -> Place | None:
    return (finding.path, str(finding.cell), str(finding.line)) if finding.path and finding.line else None
