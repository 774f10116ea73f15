"""The registry of evidence: every number a Fact may carry, its unit, which way is worse, and its sentence.

A watcher, or `checkpoint`, measures a number under one of these names, and no finding shows any other. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from .vocabulary import Part


class Unit(Enum):
    """What a number counts; a share is shown as a percentage, anything else as it is."""

    SHARE = "share"
    """A ratio; of its kind's norm, it may exceed 1."""
    RADIANS = "radians"
    BITS = "bits"
    """Powers of two."""
    NATS = "nats"
    """A difference of natural logarithms."""
    FACTOR = "factor"
    COUNT = "count"


class Evidence(NamedTuple):
    """One kind of number."""

    unit: Unit
    sentence: str
    """`{}` is the value: `{} of the positions are wrong`."""
    smaller_is_worse: bool = False
    effect: bool = False
    """What the mistake itself did, measured: where it is nil, the mistake did nothing."""


EVIDENCE: Mapping[str, Evidence] = {
    "updates_lost": Evidence(Unit.SHARE, "{} of non-zero updates were rounded away"),
    "applied_update_error": Evidence(Unit.SHARE, "the update applied differs from the exact one by {} of its norm"),
    "state_frozen": Evidence(Unit.SHARE, "{} of the elements could not move"),
    "gradient_underflow": Evidence(Unit.SHARE, "{} of the gradients underflow"),
    "gradient_rounding": Evidence(Unit.SHARE, "rounding below the normal range moves them by {} of their norm"),
    "gradient_zeros": Evidence(Unit.SHARE, "{} of the gradients are zero"),
    "accumulation_loss": Evidence(Unit.SHARE, "the sum over micro-batches is off by {}"),
    "sum_error": Evidence(Unit.SHARE, "the sums are off by {} of their norm"),
    "target_error": Evidence(Unit.SHARE, "rounding moves the targets by {} of their spread"),
    "cancelled": Evidence(Unit.SHARE, "the rounding of what cancels is {} of what is left"),
    "metric_step": Evidence(Unit.SHARE, "it changes in steps of {} of its value"),
    "choices_changed": Evidence(Unit.SHARE, "{} of the rows would choose otherwise in float32"),
    "log_prob_error": Evidence(Unit.NATS, "log-probabilities are off by {} on average"),
    "log_ratio_error": Evidence(Unit.SHARE, "their rounding is {} of what they are compared for"),
    "loss_error": Evidence(Unit.NATS, "the loss is off by {}"),
    "positions_wrong": Evidence(Unit.SHARE, "{} of the positions are wrong"),
    "phase_error": Evidence(Unit.RADIANS, "phases are off by up to {} radians"),
    "certain_share": Evidence(Unit.SHARE, "{} of the probabilities are exactly 0 or 1"),
    "inf_share": Evidence(Unit.SHARE, "{} of the values are inf or nan"),
    "skipped_share": Evidence(Unit.SHARE, "{} of the attempted steps were skipped"),
    "hollow": Evidence(Unit.SHARE, "{} of the float32 elements hold only bfloat16 values"),
    "negative_share": Evidence(Unit.SHARE, "{} of these second moments are below zero"),
    "masters_apart": Evidence(Unit.SHARE, "{} of the weights looked at are not what their masters round to"),
    "headroom": Evidence(Unit.BITS, "the largest value is {} doublings below inf", smaller_is_worse=True),
    "infinite": Evidence(Unit.COUNT, "{} of the parameters held inf or nan and were not measured"),
    "beyond_sample": Evidence(
        Unit.COUNT, "{} of the parameters were not measured: their update needs all elements (--values full)"
    ),
    "unmeasured": Evidence(
        Unit.COUNT, "{} of the parameters were not measured: float32 could not take their update again"
    ),
    "exact_update_error": Evidence(Unit.SHARE, "against float64 the updates are off by {} of their norm", effect=True),
    "exact_local_error": Evidence(Unit.SHARE, "against float64 on the same inputs it is off by {}", effect=True),
    "exact_loss_error": Evidence(Unit.SHARE, "against float64 the loss is off by {}"),
    "exact_loss_change": Evidence(Unit.SHARE, "its own rounding moved the loss by {}"),
    "exact_phase_error": Evidence(Unit.RADIANS, "against float64 phases are off by up to {} radians"),
    "exact_gradient_error": Evidence(Unit.SHARE, "against float64 the gradients are off by {}", effect=True),
    "exact_reduction_error": Evidence(Unit.SHARE, "the sum over ranks moved the gradients by {}", effect=True),
    "exact_error": Evidence(Unit.SHARE, "against float64 the result is off by {}"),
    "exact_state_error": Evidence(Unit.SHARE, "against float64 the state is off by {}"),
    "exact_amplification": Evidence(Unit.FACTOR, "errors of what it is given become {} times as large"),
    "loss_scale": Evidence(Unit.FACTOR, "the loss scale was {}"),
}
"""Evidence name -> what it is."""


NIL = 0.0005
"""A smaller share is shown as 0.0 %."""


def nil(evidence: Mapping[str, float]) -> bool:
    """Whether it was measured what a mistake did, and that it did nothing."""
    effects = [value for name, value in evidence.items() if name in EVIDENCE and EVIDENCE[name].effect]
    return bool(effects) and max(effects) < NIL


MOST_PARTS = 20


def worst_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Those of whose updates the most was lost, first; few rows: the last of many that did not move stands for all."""
    rows = sorted(parts, key=lambda part: (-part.evidence.get("updates_lost", 0.0), -part.tensors, part.name))
    kept, rest = rows[:MOST_PARTS], rows[MOST_PARTS:]
    still = sum(part.tensors for part in rest if unmoved(part))
    if still:
        kept[-1] = Part("*", kept[-1].tensors + still, {"updates_lost": 1.0})
    return tuple(kept)


def unmoved(part: Part) -> bool:
    """Whether none of these tensors' updates took effect."""
    return part.evidence.get("updates_lost") == 1.0


def joined_parts(one: Iterable[Part], other: Iterable[Part], same: bool) -> tuple[Part, ...]:
    """The parts of two accounts: of the same tensors, as two ranks give, or of different ones."""
    by_name = {part.name: part for part in one}
    for part in other:
        known = by_name.get(part.name, Part(part.name, 0, {}))
        count = max(known.tensors, part.tensors) if same else known.tensors + part.tensors
        by_name[part.name] = Part(part.name, count, worst(known.evidence, part.evidence))
    return worst_parts(by_name.values())


def worse(name: str, one: float, other: float) -> float:
    """The worse of two numbers of this name: the smaller headroom, the larger share; of an unknown name the larger."""
    known = EVIDENCE.get(name)
    return min(one, other) if known is not None and known.smaller_is_worse else max(one, other)


def worst(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Of each name that either holds, the worse number: two ranks, or two optimizers of one class."""
    return {**one, **{name: worse(name, value, one.get(name, value)) for name, value in other.items()}}
