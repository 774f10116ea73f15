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
    Role.GRADIENT_NORM: frozenset("linalg_vector_norm norm _foreach_norm pow square sum sqrt".split()),
    Role.REDUCTION: frozenset("sum mean cumsum cumprod add index_add index_add_ add_ _embedding_bag".split()),
}
"""Role -> the operations on its line that compute it."""
CANCELLATION = "cancellation"


def add_exact(observations: Iterable[Observation], lines: Sequence[Line], rows: dict[Key, Row]) -> None:
    """Gives each observation its numbers, in place."""
    known = [line for line in lines if line.error is not None and not line.partial]
    phases = [line.absolute for line in lines if line.what == "phases" and line.absolute is not None]
    for seen in observations:
        if seen.kind is not Kind.HOLDS:
            if seen.attrs.get("op") == CANCELLATION:
                _say(seen, "exact_amplification", [row.amplification for _, row in _on_line(seen, rows)])
            continue
        ours = [line for line in known if line.dtype == seen.dtype]
        if seen.role is Role.MASTER_WEIGHT:
            _of_updates(seen, [line for line in ours if line.what == "update"])
        elif seen.role is Role.GRADIENT_ACCUMULATION:
            sums = [line for line in ours if line.what == "gradient"]  # else a buffer of another dtype was summed
            _say(seen, "exact_gradient_error", [_together(sums or [one for one in known if one.what == "gradient"])])
        elif seen.role is Role.GRADIENT_REDUCTION:
            _say(seen, "exact_reduction_error", [_reduced(known)])
        elif seen.role is Role.OPTIMIZER_STATE:
            _say(seen, "exact_state_error", [_together(line for line in ours if line.what == "state")])
        elif seen.role is Role.LOSS:
            _say(seen, "exact_loss_error", [line.error for line in known if line.what == "loss"])
        elif seen.role is Role.POSITIONS:
            _say(seen, "exact_phase_error", phases)
        elif seen.role in COMPUTED:
            _of_operations(seen, known, rows)


def _say(seen: Observation, name: str, numbers: Iterable[float | None]) -> None:
    """The largest of what is known, if anything is."""
    found = [one for one in numbers if one]
    if found:
        seen.evidence[name] = max(found)


def _on_line(seen: Observation, rows: dict[Key, Row]) -> list[tuple[Key, Row]]:
    """What ran on the observation's line, backward apart."""
    where = (seen.site.path, seen.site.line) if seen.site is not None else None
    return [
        (key, row)
        for key, row in rows.items()
        if key.site is not None and (key.site.path, key.site.line) == where and key.phase != "backward"
    ]


def _of_operations(seen: Observation, known: Sequence[Line], rows: dict[Key, Row]) -> None:
    """The errors of those that compute what was observed, in its dtype."""
    assert seen.role is not None, "it has one"
    names = COMPUTED[seen.role]
    found = [row for key, row in _on_line(seen, rows) if key.dtype == seen.dtype and key.operation in names]
    if not found or not all(row.sound for row in found):
        return  # nothing is known of what was inf or NaN
    if seen.role is Role.REDUCTION:  # what counts is what all its roundings came to
        _say(seen, "exact_error", [row.distance for row in found])
        return
    # float16 rounds little: what it does to what is out of its range this step may not have shown
    name = "exact_error" if seen.dtype == "float16" else "exact_local_error"
    seen.evidence[name] = max(row.local for row in found)
    if seen.role is Role.SOFTMAX:
        _say(seen, "exact_loss_error", [line.error for line in known if line.what == "loss"])
        _say(seen, "exact_loss_change", [row.loss for row in found])


def _reduced(lines: Iterable[Line]) -> float | None:
    """What the sum over the ranks did to all gradients together."""
    parts = [line for line in lines if line.what == "gradient" and "reduction" in line.split]
    size = math.hypot(*(line.size or 0.0 for line in parts))
    return math.hypot(*(line.split["reduction"] * (line.size or 0.0) for line in parts)) / size if size else None


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
