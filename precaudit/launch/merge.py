"""Makes one account of what all ranks saw: equal Facts once, with their ranks; ranks that disagree are a Fact too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from precaudit.launch.identity import Program
from precaudit.model.evidence import joined_parts, worst
from precaudit.model.exact import ExactStep
from precaudit.model.picture import Picture, RanksHeld
from precaudit.model.vocabulary import Fact, Kind, Part, Role, fact_from_json
from precaudit.model.wire import Coverage, Held, Preflight, RankFile

COMPARED = frozenset(
    {
        Role.OPTIMIZER_STATE,
        Role.MASTER_WEIGHT,
        Role.LOSS,
        Role.LOSS_SCALE,
        Role.NORM_RUNNING_STATISTICS,
        Role.NORM_COMPUTATION,
        Role.GRADIENT,
        Role.GRADIENT_ACCUMULATION,
        Role.GRADIENT_REDUCTION,
        Role.FORWARD_WEIGHT,
        Role.ADAPTER_PARAMETER,
        Role.QUANTIZED_STORAGE,
    }
)
"""Roles whose dtypes are the same on all ranks that run the same modules; activations may differ with the data."""

_Key = tuple[Any, ...]


def _key(raw: Mapping[str, Any]) -> _Key:
    """All of a Fact as JSON except its figures: read off the raw values, at a fifth of what a Fact costs."""
    site, cause, attrs = raw.get("site"), raw.get("cause"), raw.get("attrs")
    return (
        raw["kind"],
        raw.get("role"),
        raw.get("dtype"),
        tuple(site) if site else None,
        repr(cause) if cause else None,
        raw.get("module"),
        raw.get("detail"),
        tuple(sorted(attrs.items())) if attrs else (),
    )


def ranks_in_words(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-7`, `ranks 0-2, 5`."""
    spans: list[tuple[int, int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1] = (spans[-1][0], rank)
        else:
            spans.append((rank, rank))
    return spans_in_words(spans)


def spans_in_words(spans: Sequence[tuple[int, int]]) -> str:
    """The same of first and last ranks; a span may be longer than any list."""
    words = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(spans) > 1 or any(a != b for a, b in spans) else ''} {words}"


def _evidence(raw: Mapping[str, Any]) -> dict[str, float]:
    """A Fact's measured numbers; what came out as NaN or inf was not measured."""
    return {name: value for name, value in (raw.get("evidence") or {}).items() if math.isfinite(value)}


def _parts(raw: Mapping[str, Any]) -> list[Part]:
    return [Part(**part) for part in raw.get("parts") or ()]


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Equal Facts of one process speak of different tensors: two optimizers of one class."""
    return {
        **other,
        "count": one.get("count", 1) + other.get("count", 1),
        "bytes": one.get("bytes", 0) + other.get("bytes", 0),
        "evidence": worst(_evidence(one), _evidence(other)),
        "parts": [part._asdict() for part in joined_parts(_parts(one), _parts(other), same=False)],
    }


@dataclass(slots=True)
class _Seen:
    """A Fact in the making: each rank holds its own copy or shard; the reader wants one rank's figures, the worst."""

    first: Fact
    count: int
    bytes: int
    evidence: dict[str, float]
    parts: tuple[Part, ...]
    ranks: set[int]

    def join(self, raw: Mapping[str, Any], rank: int) -> None:
        self.ranks.add(rank)
        if raw.get("count", 1) > self.count:
            self.count = raw["count"]
        if raw.get("bytes", 0) > self.bytes:
            self.bytes = raw["bytes"]
        if raw.get("evidence"):
            self.evidence = worst(self.evidence, _evidence(raw))
        if raw.get("parts"):
            self.parts = joined_parts(self.parts, _parts(raw), same=True)

    @property
    def fact(self) -> Fact:
        return replace(self.first, count=self.count, bytes=self.bytes, evidence=dict(self.evidence), parts=self.parts)


@dataclass(slots=True)
class _Holding:
    """What one rank held in one role."""

    dtypes: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


class Merged:
    """Facts and coverage of all processes read so far."""

    def __init__(self, names: Callable[[Sequence[int]], str] = ranks_in_words) -> None:
        self._names = names
        """How the reader knows these ranks; where whole reports are merged, each number stands for one of them."""
        self._facts: dict[_Key, _Seen] = {}
        self.coverage = Coverage()
        self.exact: ExactStep | None = None
        """That of the lowest rank that has one: each rank has its own data, and its own errors."""
        self.picture: Picture | None = None
        """The same."""
        self.ranks: set[int] = set()
        self.world_size = 0
        self.unfinished: set[int] = set()
        """Ranks whose window was still open in their last file."""
        self.without: set[int] = set()
        """Ranks the others stopped without waiting for."""
        self._statuses: list[tuple[int, str]] = []
        self._inventory: dict[str, Held] = {}
        self.preflight: Preflight | None = None
        """Of the first rank that was read; what others assumed is not added."""
        self.program = Program()

    def add(self, one: RankFile) -> None:
        """Takes in one process's file; two processes of one rank (a restart, a second run) count as one rank."""
        self.ranks.add(one.rank)
        self.world_size = max(self.world_size, one.world_size)
        self._statuses.append((one.rank, one.status))
        self.without.update(one.without)
        self._take_inventory(one.inventory)
        mine = self.program
        self.program = Program(
            mine.python or one.python,
            {**one.versions, **mine.versions},
            mine.gpu or one.gpu,
            mine.model or one.model,
            max(mine.parameters, one.parameters),
        )
        self.preflight = self.preflight or one.preflight
        if one.status == "watching":
            self.unfinished.add(one.rank)
        if one.exact is not None and (self.exact is None or one.exact.rank < self.exact.rank):
            self.exact = one.exact
        if one.picture is not None and (self.picture is None or one.rank < self.picture.rank):
            self.picture = one.picture.model_copy(update={"rank": one.rank})
        unreadable = 0
        facts: dict[_Key, Mapping[str, Any]] = {}
        for raw in one.facts:
            try:
                key = _key(raw)
                facts[key] = _sum(facts[key], raw) if key in facts else raw
            except (KeyError, ValueError, TypeError, AttributeError):
                unreadable += 1
        for key, fact in facts.items():
            try:
                self._add_fact(key, fact, one.rank)
            except (KeyError, ValueError, TypeError, AttributeError):
                unreadable += 1
        if unreadable:
            self.coverage.notes.append(
                f"{self._names([one.rank])}: {unreadable} facts are not in this precaudit's words"
            )
        self._add_coverage(one)

    def _take_inventory(self, rows: Sequence[Held]) -> None:
        """Ranks of one model hold the same names; those of other stages add theirs."""
        for row in rows:
            mine = self._inventory.setdefault(row.name, row)
            if mine.dtypes != row.dtypes or mine.tensors < row.tensors:
                kinds = sorted({*mine.dtypes, *row.dtypes})
                both = {kind: sorted({*mine.dtypes.get(kind, ()), *row.dtypes.get(kind, ())}) for kind in kinds}
                sizes = {what: max(mine.bytes.get(what, 0), row.bytes.get(what, 0)) for what in kinds}
                most = max(mine.tensors, row.tensors)
                self._inventory[row.name] = Held(name=row.name, tensors=most, dtypes=both, bytes=sizes)

    def _add_fact(self, key: _Key, raw: Mapping[str, Any], rank: int) -> None:
        seen = self._facts.get(key)
        if seen is not None:
            seen.join(raw, rank)
            return
        fact = fact_from_json(raw)
        self._facts[key] = _Seen(fact, fact.count, fact.bytes, _evidence(raw), fact.parts, {rank})

    def _holdings(self) -> dict[Role, dict[int, _Holding]]:
        """What each rank held in each role that is compared."""
        held: dict[Role, dict[int, _Holding]] = {}
        for seen in self._facts.values():
            fact = seen.first
            if fact.kind is not Kind.HOLDS or fact.role not in COMPARED:
                continue
            by_rank = held.setdefault(fact.role, {})
            for rank in seen.ranks:
                holding = by_rank.get(rank) or by_rank.setdefault(rank, _Holding())
                holding.dtypes.add(fact.dtype)
                holding.modules.add(fact.module)
        return held

    def _add_coverage(self, one: RankFile) -> None:
        mine, theirs = self.coverage, one.coverage
        mine.steps = max(mine.steps, one.steps)
        mine.ranks = len(self.ranks)
        mine.world_size = max(mine.world_size, one.world_size)
        mine.stopped += one.status == "stopped"
        mine.unattributed_ops = max(mine.unattributed_ops, theirs.unattributed_ops)
        for name, amount in theirs.compiled.items():
            mine.compiled[name] = max(amount, mine.compiled.get(name, amount))
        mine.micro_batches = max(mine.micro_batches, theirs.micro_batches)
        mine.attempts = max(mine.attempts, theirs.attempts)
        mine.skipped_steps = max(mine.skipped_steps, theirs.skipped_steps)
        mine.parameters = max(mine.parameters, theirs.parameters)
        mine.traced_steps = sorted({*mine.traced_steps, *theirs.traced_steps})
        mine.notes += [note for note in theirs.notes if note not in mine.notes]
        mine.skipped += [name for name in theirs.skipped if name not in mine.skipped]
        for name, cost in theirs.overhead.items():
            mine.overhead[name] = max(cost, mine.overhead.get(name, cost))
        for name, why in theirs.not_observed.items():
            mine.not_observed.setdefault(name, why)
        for name, value in theirs.setup.items():
            first = mine.setup.setdefault(name, value)
            if value != first:
                note = f"{self._names([one.rank])}: {name} is {value}, elsewhere {first}"
                if len(mine.notes) < 50 and note not in mine.notes:
                    mine.notes.append(note)

    def finish(self) -> None:
        """Rounds off the coverage once every file is in: what one rank observed is observed."""
        self.coverage.rank_ids = sorted(self.ranks)
        held = {seen.first.role for seen in self._facts.values() if seen.first.kind is Kind.HOLDS}
        for role in {role.value for role in held if role} & set(self.coverage.not_observed):
            del self.coverage.not_observed[role]

    @property
    def inventory(self) -> list[Held]:
        """What the tensors of each name held, on whatever rank."""
        return [self._inventory[name] for name in sorted(self._inventory)]

    @property
    def by_rank(self) -> list[RanksHeld]:
        """Ranks by what they held, those that are most first; nothing where there is one rank."""
        if len(self.ranks) < 2:
            return []
        held: dict[int, dict[str, list[str]]] = {rank: {} for rank in self.ranks}
        for role, by_rank in self._holdings().items():
            for rank, holding in by_rank.items():
                held[rank][role.value] = sorted(holding.dtypes)
        alike: dict[str, RanksHeld] = {}
        for rank, roles in sorted(held.items()):
            alike.setdefault(repr(sorted(roles.items())), RanksHeld(ranks=[], roles=roles)).ranks.append(rank)
        return sorted(alike.values(), key=lambda one: (-len(one.ranks), one.ranks))

    @property
    def statuses(self) -> list[str]:
        """The `status` of each file, less those of ranks that the others left behind: theirs is our doing."""
        kept = [status for rank, status in self._statuses if rank not in self.without]
        return kept or [status for _, status in self._statuses]

    @property
    def facts(self) -> list[Fact]:
        """Every Fact once, then one for each role in which ranks differ."""
        return [*(seen.fact for seen in self._facts.values()), *self.disagreements()]

    def ranks_of(self) -> Iterator[tuple[Fact, list[int]]]:
        """Each Fact with the ranks that saw it; a disagreement with the ranks that are unlike the most."""
        for seen in self._facts.values():
            yield seen.fact, sorted(seen.ranks)
        yield from self._differences()

    def disagreements(self) -> list[Fact]:
        """One RANKS_DIFFER Fact per role whose dtypes are not the same on ranks that share modules.

        Ranks of different pipeline stages share none and are not compared.
        """
        return [fact for fact, _ in self._differences()]

    def _differences(self) -> Iterator[tuple[Fact, list[int]]]:
        for role, by_rank in self._holdings().items():
            if len(by_rank) < 2:
                continue
            groups: dict[frozenset[str], list[int]] = {}
            for rank, holding in by_rank.items():
                groups.setdefault(frozenset(holding.dtypes), []).append(rank)
            usual = max(groups, key=lambda dtypes: (len(groups[dtypes]), -min(groups[dtypes])))
            common = set().union(*(by_rank[rank].modules for rank in groups[usual]))
            odd = sorted(
                rank
                for dtypes, ranks in groups.items()
                if dtypes != usual
                for rank in ranks
                if by_rank[rank].modules & common
            )
            if odd:
                yield _difference(role, usual, groups[usual], odd, by_rank, self._facts.values(), self._names), odd


def _difference(
    role: Role,
    usual: frozenset[str],
    others: list[int],
    odd: list[int],
    by_rank: dict[int, _Holding],
    seen: Iterable[_Seen],
    names: Callable[[Sequence[int]], str],
) -> Fact:
    theirs = frozenset(by_rank[odd[0]].dtypes)
    strange = sorted(theirs - usual) or sorted(usual - theirs)
    site = next(
        (s.first.site for s in seen if s.first.role is role and s.first.dtype == strange[0] and s.first.site), None
    )
    return Fact(
        kind=Kind.RANKS_DIFFER,
        dtype=strange[0],
        role=role,
        site=site,
        detail=(
            f"{names(odd)} held {', '.join(sorted(theirs))}, {names(sorted(others))} held {', '.join(sorted(usual))}"
        ),
        count=len(odd),
        attrs={"ranks": names(odd)},
    )
