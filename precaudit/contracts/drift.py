"""What changed between two precisions: role by role, tensor by tensor, as rows and as sentences."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from precaudit.contracts.precision import COMPUTED, OF_SEVERAL_RANKS, Dtypes, Precision
from precaudit.model.vocabulary import Role

GRADIENT = Role.GRADIENT.value
NOTHING: Dtypes = ()
Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was: `what` was `was`, and is `now`."""

    what: str
    """"softmax", "blocks.*.norm.weight: gradient", "declared gradient_reduction", "autocast"."""
    was: str
    """Empty where it was not there."""
    now: str

    def __str__(self) -> str:
        if not self.was:
            return f"{self.what} is new: {self.now}"
        if not self.now:
            return f"{self.what} was {self.was}, and is no longer there"
        return f"{self.what} was {self.was}, is {self.now}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that differs, what may have brought it about, and what could not be compared."""

    changes: tuple[Change, ...]
    versions: tuple[Change, ...]
    left_out: tuple[str, ...]


def compare(before: Precision, after: Precision) -> Comparison:
    """What `after` holds otherwise than `before`.

    Roles that only several ranks have are left out where one of the runs had a single one, and a gradient that only one
    of these runs still held at the step: DeepSpeed's stage 3 divides what several ranks have. Between a run on a device
    and a preflight, where a CPU stood in for it, so are the device's name and roles that only one of them saw: a
    preflight runs eagerly what the device may have run compiled or fused.
    """
    apart: dict[str, str] = {}
    setup: frozenset[str] = frozenset()
    if before.preflight != after.preflight:
        setup = frozenset({"device"})
        apart = dict.fromkeys(
            set(before.roles) ^ set(after.roles), "only one saw it, and one of the runs was a preflight"
        )
    if before.several_ranks != after.several_ranks:
        apart |= dict.fromkeys(OF_SEVERAL_RANKS, "one of the runs had a single rank")
        held = [set(one.roles.get(GRADIENT, ())) for one in (before, after)]
        if held[0] < held[1] or held[1] < held[0]:
            apart[GRADIENT] = "one of the runs had a single rank, and kept gradients that several divide and free"
    left_out = [
        f"{_words(role)}: {why}" for role, why in sorted(apart.items()) if role in {**before.roles, **after.roles}
    ]
    left_out += [f"{name}: one of the runs was a preflight" for name in sorted(setup)]
    changes = [
        *_setup(_without(before.setup, setup), _without(after.setup, setup)),
        *_table("", _without(before.roles, apart), _without(after.roles, apart)),
        *_table("declared ", _without(before.declared, apart), _without(after.declared, apart)),
        *_tensors(before.tensors, after.tensors),
    ]
    return Comparison(tuple(changes), tuple(_versions(before.versions, after.versions)), tuple(left_out))


def _setup(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        if before.get(name, "") != after.get(name, ""):
            yield Change(name, before.get(name, ""), after.get(name, ""))


def _versions(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield Change(name, before.get(name, ""), after.get(name, ""))


def _table(front: str, before: Mapping[str, Dtypes], after: Mapping[str, Dtypes]) -> Iterator[Change]:
    for role in sorted({*before, *after}):
        was, now = before.get(role, NOTHING), after.get(role, NOTHING)
        if was != now:
            yield Change(f"{front}{_words(role)}", _listed(was), _listed(now))


def _tensors(before: Mapping[str, Mapping[str, Dtypes]], after: Mapping[str, Mapping[str, Dtypes]]) -> Iterator[Change]:
    """Tensors and modules by their name; one without a row of its own is held to the pattern that it fits.

    What a module computes is compared where both runs saw it compute that: an expert may have had no token.
    """
    changed: dict[tuple[str, str, str], list[str]] = {}
    holding: dict[str, int] = {}
    for name in sorted({*before, *after}):
        was, now = _row(before, name), _row(after, name)
        if was is None or now is None:
            if not COMPUTED.issuperset(was or now or ()):
                changed.setdefault(("", _kinds(was), _kinds(now)), []).append(name)
            continue
        for what in sorted({*was, *now}):
            old, new = was.get(what, NOTHING), now.get(what, NOTHING)
            holding[what] = holding.get(what, 0) + 1
            if old != new and (what not in COMPUTED or (old and new)):
                changed.setdefault((what, _listed(old), _listed(new)), []).append(name)
    # What changed alike in the same tensors is one sentence: exp_avg and exp_avg_sq, the weight and its gradient.
    alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (what, old_text, new_text), theirs in changed.items():
        alike.setdefault((old_text, new_text, tuple(theirs)), []).append(what)
    for (old_text, new_text, theirs_too), whats in alike.items():
        every = max(holding.get(what, 0) for what in whats)
        where = f"all {every} names" if len(theirs_too) == every > 1 else _several(theirs_too)
        told = ", ".join(_words(what) if what in COMPUTED else what for what in whats)
        yield Change(f"{where}: {told}" if told else where, old_text, new_text)


def _row(tensors: Mapping[str, Mapping[str, Dtypes]], name: str) -> Mapping[str, Dtypes] | None:
    if name in tensors:
        return tensors[name]
    # A name of its own, `blocks.3.norm.weight`, against a pattern, `blocks.*.norm.weight`; or the other way round.
    parts = name.split(".")
    for pattern, kinds in tensors.items():
        if "*" in pattern and "*" not in name and _fits(parts, pattern.split(".")):
            return kinds
    return None


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether each part of a name is that of the pattern, in which `*` stands for one number."""
    return len(parts) == len(pattern) and all(
        part == known or (known == "*" and part.isdigit()) for part, known in zip(parts, pattern, strict=True)
    )


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _kinds(kinds: Mapping[str, Dtypes] | None) -> str:
    if kinds is None:
        return ""
    return ", ".join(f"{what} {_listed(dtypes)}" for what, dtypes in kinds.items()) or "nothing"


def _without(table: Mapping[str, Held], left_out: Container[str]) -> dict[str, Held]:
    return {key: held for key, held in table.items() if key not in left_out}


def _words(role: str) -> str:
    return role.replace("_", " ")


def _listed(dtypes: Dtypes) -> str:
    return " and ".join(dtypes)
