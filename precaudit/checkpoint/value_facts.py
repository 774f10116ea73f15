"""Turns what tensors of a checkpoint hold into Facts: NaN, inf, negative second moments, weights that never moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from precaudit.checkpoint import content
from precaudit.checkpoint.facts import Held, Holdings, Maker
from precaudit.checkpoint.masters import Pair, apart, pairs
from precaudit.checkpoint.roles import Part
from precaudit.checkpoint.values import SAMPLE, Count, count, one_value
from precaudit.model.vocabulary import FLOATING, LOW, Fact, Kind, Role

SCANNED = (Part.WEIGHT, Part.ADAPTER, Part.AVERAGE, Part.STATISTICS, Part.MASTER, Part.MOMENT)
NEVER_NEGATIVE = frozenset(
    "exp_avg_sq max_exp_avg_sq exp_avg_sq_row exp_avg_sq_col row_var col_var square_avg acc_delta exp_inf".split()
)
"""Sums of squares and maxima of magnitudes. Source: torch/optim/adam.py, adadelta.py, rmsprop.py, adamax.py."""
UNBOUNDED = ("mask", "min_val", "max_val")
"""Buffers that hold inf by design: attention masks, observers of torch.ao before they have seen anything."""
ONES = {
    "float32": b"\0\0\x80\x3f", "bfloat16": b"\x80\x3f", "float16": b"\0\x3c", "float64": b"\0\0\0\0\0\0\xf0\x3f"
}  # fmt: skip
"""The bytes of 1.0, which norm weights begin with."""
FEW_STEPS = 2
"""Optimizer steps up to which a weight may not have moved: a warm-up begins with a learning rate of 0."""
MOSTLY = 0.01
"""Share of sampled weights from which they are no roundings of their masters."""


class Scanned(NamedTuple):
    """A tensor, and what was counted in it."""

    held: Held
    found: Count


def value_facts(holdings: Holdings, shown: str, whole: bool) -> tuple[list[Fact], list[str]]:
    """The Facts of one checkpoint by its values, all of them or a sample, and notes on what was not looked at."""
    maker = Maker(holdings, shown)
    scanned, unread = _scan(holdings, whole)
    facts = [
        *_not_finite(maker, scanned),
        *_negative(maker, scanned),
        *_counters(maker),
        *_apart(maker),
        *_initial(maker),
    ]
    notes = []
    if unread:
        notes.append(f"{shown}: the values of {unread:,} tensor{'s' * (unread != 1)} cannot be read in place")
    if short := sum(one.found.seen < one.held.tensor.numel for one in scanned):
        why = "only parts of them are read" if whole else f"{SAMPLE:,} elements of each were looked at"
        notes.append(f"{shown}: NaN and inf: of {short:,} tensor{'s' * (short != 1)} not all values: {why}")
    return facts, notes


def _scan(holdings: Holdings, whole: bool) -> tuple[list[Scanned], int]:
    """What each tensor holds; memory that several share is read once. And how many cannot be read."""
    scanned, unread, known = [], 0, set[object]()
    for held in holdings.of(*SCANNED):
        tensor = held.tensor
        if tensor.dtype not in FLOATING or not tensor.numel or (tensor.pieces and tensor.pieces in known):
            continue
        known.add(tensor.pieces)
        found = count(tensor, whole, signs=held.part is Part.MOMENT and held.name in NEVER_NEGATIVE)
        unread += found is None
        if found is not None:
            scanned.append(Scanned(held, found))
    return scanned, unread


def _not_finite(maker: Maker, scanned: Iterable[Scanned]) -> Iterator[Fact]:
    """NaN and inf, of weights and of optimizer state apart; what holds both counts as NaN."""
    groups: dict[tuple[Role, str, str], list[Scanned]] = {}
    for one in scanned:
        if one.found.nan or (one.found.inf and not _by_design(one)):
            value = "nan" if one.found.nan else "inf"
            groups.setdefault((maker.role(one.held) or Role.FORWARD_WEIGHT, one.held.tensor.dtype, value), []).append(
                one
            )
    for (role, dtype, value), members in groups.items():
        of_optimizer = role is Role.OPTIMIZER_STATE
        broken = sum(one.found.nan + one.found.inf for one in members)
        yield Fact(
            Kind.NON_FINITE,
            dtype,
            role,
            maker.site(one.held for one in members),
            detail=_told(members, broken),
            count=len(members),
            attrs={"what": "optimizer state" if of_optimizer else "parameter", "value": value},
            evidence={"inf_share": broken / sum(one.found.seen for one in members)},
        )


def _by_design(one: Scanned) -> bool:
    return one.held.part is Part.WEIGHT and (one.found.masks or any(word in one.held.name for word in UNBOUNDED))


def _told(members: list[Scanned], elements: int) -> str:
    first = members[0].held.dotted
    more = f" and {len(members) - 1:,} more" if len(members) > 1 else ""
    return f"{elements:,} element{'s' * (elements != 1)} of {first}{more}"


def _negative(maker: Maker, scanned: Iterable[Scanned]) -> Iterator[Fact]:
    """Second moments below zero: their root is NaN."""
    members = [one for one in scanned if one.found.negative]
    for dtype in sorted({one.held.tensor.dtype for one in members}):
        mine = [one for one in members if one.held.tensor.dtype == dtype]
        below = sum(one.found.negative for one in mine)
        yield Fact(
            Kind.CHECKPOINT,
            dtype,
            Role.OPTIMIZER_STATE,
            maker.site(one.held for one in mine),
            detail=_told(mine, below),
            count=len(mine),
            attrs={"values": "negative"},
            evidence={"negative_share": below / sum(one.found.seen for one in mine)},
        )


def _counters(maker: Maker) -> Iterator[Fact]:
    """Step counters in a dtype that stops counting, with the value that each has become."""
    for dtype in sorted({held.tensor.dtype for held in maker.holdings.counters} & LOW):
        members = [held for held in maker.holdings.counters if held.tensor.dtype == dtype]
        values = [value for held in members if (value := content.scalar(held.tensor)) is not None]
        last = FLOATING[dtype].max_exact_integer
        at = f"it is {max(values):,.0f}, " if values else ""
        stopped = "where it has stopped" if values and max(values) >= last else f"and will stop at {last:,}"
        true = maker.holdings.checkpoint.steps
        known = f"; the trainer counts {true:,}" if true and values and true != max(values) else ""
        yield Fact(
            Kind.HOLDS,
            dtype,
            Role.OPTIMIZER_STATE,
            maker.site(members),
            detail=f"{at}{stopped}{known}",
            count=len(members),
            attrs={"what": "hyperparameter", "key": "step"},
        )


def _apart(maker: Maker) -> Iterator[Fact]:
    """Weights that are no roundings of the masters beside them."""
    looked = [(pair, found) for pair in pairs(maker.holdings) if (found := apart(pair)) is not None]
    wrong: list[tuple[Pair, float]] = [(pair, share) for pair, share in looked if share >= MOSTLY]
    if not wrong:
        return
    names = ", ".join(pair.weight.dotted for pair, _ in wrong[:2])
    yield Fact(
        Kind.CHECKPOINT,
        wrong[0][0].weight.tensor.dtype,
        Role.FORWARD_WEIGHT,
        maker.site(pair.weight for pair, _ in wrong),
        detail=f"{len(wrong):,} of {len(looked):,} that could be compared, such as {names}",
        count=len(wrong),
        attrs={"values": "apart"},
        evidence={"masters_apart": max(share for _, share in wrong)},
    )


def _initial(maker: Maker) -> Iterator[Fact]:
    """Vectors that an optimizer trains and that are 1.0 in every element, where not a single one has moved."""
    steps = max([*maker.holdings.steps, maker.holdings.checkpoint.steps], default=0)
    if steps <= FEW_STEPS:
        return
    kept = maker.masters or [held for held in maker.holdings.of(Part.WEIGHT) if id(held) in maker.trained]
    vectors = [held for held in kept if len(held.tensor.shape) == 1 and held.tensor.numel > 1]
    still = [held for held in vectors if one_value(held.tensor) == ONES.get(held.tensor.dtype, b"-")]
    groups: dict[tuple[str, str], list[Held]] = {}
    for held in still:
        groups.setdefault((held.tensor.dtype, _low_content(held, kept)), []).append(held)
    for (dtype, low), members in groups.items():
        more = f" and {len(members) - 1:,} more" if len(members) > 1 else ""
        yield Fact(
            Kind.CHECKPOINT,
            dtype,
            Role.MASTER_WEIGHT,
            maker.site(members),
            detail=f"{members[0].dotted}{more}, after {steps:,.0f} optimizer steps",
            count=len(members),
            attrs={"values": "initial", **({"content": low} if low else {})},
        )


def _low_content(held: Held, beside: list[Held]) -> str:
    """The low dtype that the weights beside a float32 one hold the values of; empty where they are float32."""
    if held.tensor.dtype != "float32":
        return ""
    looks = [look for other in beside if other.tensor.dtype == "float32" and (look := content.look(other.tensor))]
    telling = [look for look in looks if look.tells]
    low = {look.hollow for look in telling}
    return low.pop() if len(low) == 1 else ""
