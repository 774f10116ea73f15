"""What the exact step adds to the watchers' observations: how far what they saw is from float64, as evidence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from ...model.vocabulary import Kind, Role
from ..process.ledger import Observation
from .budget import Line
from .rows import Key, Row

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
"""A number between dots, as the parts of an observation are named by pattern: `blocks.*.norm.weight`."""
COMPUTED = {
    Role.NORM_COMPUTATION: frozenset("pow mean var var_mean std sum square mul div rsqrt sqrt".split()),
    Role.SOFTMAX: frozenset("_softmax _log_softmax _safe_softmax exp logsumexp sum div log".split()),
}
"""Role -> the operations on its line that compute it."""


def add_exact(observations: Iterable[Observation], lines: Sequence[Line], rows: dict[Key, Row]) -> None:
    """Gives each observation its numbers, in place."""
    updates = [line for line in lines if line.what == "update" and line.error is not None and not line.partial]
    losses = [line.error for line in lines if line.what == "loss" and line.error is not None and not line.partial]
    for seen in observations:
        if seen.kind is not Kind.HOLDS or seen.role is None:
            continue
        if seen.role is Role.MASTER_WEIGHT:
            _of_updates(seen, [line for line in updates if line.dtype == seen.dtype])
        elif seen.role in COMPUTED and seen.site is not None:
            where, names = (seen.site.path, seen.site.line), COMPUTED[seen.role]
            found = [
                row.local
                for key, row in rows.items()
                if key.site is not None
                and (key.site.path, key.site.line) == where
                and key.dtype == seen.dtype
                and key.operation in names
                and key.phase == "forward"
            ]
            if found:
                seen.evidence["exact_local_error"] = max(found)
            if found and losses and seen.role is Role.SOFTMAX:
                seen.evidence["exact_loss_error"] = max(losses)


def _of_updates(seen: Observation, lines: Sequence[Line]) -> None:
    """The error of all updates together, and of each part's."""
    if (total := _together(lines)) is not None:
        seen.evidence["exact_update_error"] = total
    by_pattern: dict[str, list[Line]] = {}
    for line in lines:
        for name in {line.name, INDEX.sub("*", line.name)}:
            by_pattern.setdefault(name, []).append(line)
    parts = []
    for part in seen.parts:
        named = by_pattern.get(part.name, [])  # a pattern may stand for some of those that fit it
        error = _together(named) if len(named) == part.tensors else None
        added = {} if error is None else {"exact_update_error": error}
        parts.append(part._replace(evidence={**part.evidence, **added}))
    seen.parts = tuple(parts)


def _together(lines: Iterable[Line]) -> float | None:
    """One error for several: the norm of all errors over the norm of all exact values."""
    errors, sizes = [], []
    for line in lines:
        errors.append(line.absolute or 0.0)
        sizes.append(line.size or 0.0)
    size = math.hypot(*sizes)
    return math.hypot(*errors) / size if size else None
