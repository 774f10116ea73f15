"""What a team allows its runs: roles in other dtypes, by module and optimizer slot, and rules for a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from precaudit.model.vocabulary import Fact, Kind, Role, Site
from precaudit.model.wire import Rule

BLOCKWISE = "-blockwise"
"""Ends the name of a dtype that is stored with a scale for each block: "int8-blockwise"."""
ABOUT_DTYPES = frozenset({Kind.HOLDS, Kind.CHECKPOINT, Kind.CONFIG})
"""Kinds of Facts whose rules may be about nothing but the dtype of a role."""
WEIGHTS = frozenset({Role.MASTER_WEIGHT, Role.ADAPTER_PARAMETER, Role.FORWARD_WEIGHT})


class Pattern(NamedTuple):
    """Some places of a run: modules and optimizer slots, as globs: blocks.*, exp_avg."""

    module: str = "*"
    slot: str = "*"

    def covers(self, place: Place) -> bool:
        return fnmatchcase(place.name, self.module) and fnmatchcase(place.slot, self.slot)


EVERYWHERE = Pattern()


class Clause(NamedTuple):
    """A role may hold these dtypes in some places: optimizer_state in bfloat16, in blocks.*, exp_avg."""

    role: Role
    dtypes: frozenset[str]
    because: str
    where: Pattern = EVERYWHERE

    def names(self, fact: Fact) -> bool:
        """Whether it is about what this Fact holds, wherever that is."""
        return fact.role is self.role and (fact.dtype in self.dtypes or self._as_blocks(fact))

    def _as_blocks(self, fact: Fact) -> bool:
        stored = fact.dtype.removeprefix("u") + BLOCKWISE
        return stored in self.dtypes and fact.attrs.get("allowed_because") == "block-wise"


class Allowance(NamedTuple):
    """Some rules are silent in some modules, for a reason and until a day."""

    rules: frozenset[str]
    spelled: str
    """As the user wrote them."""
    module: str
    reason: str
    expires: date
    line: int
    """Where it stands in pyproject.toml; 0 where that is not known."""


class Place(NamedTuple):
    """A tensor of a run, or some of one pattern: `blocks.*.weight`, and the slot of the optimizer, "" for none."""

    name: str
    slot: str


Rows = Sequence[tuple[str, Mapping[str, Sequence[str]]]]
"""What each name of a run held: [("blocks.*.weight", {"weight": ["float32"], "AdamW.exp_avg": ["bfloat16"]})]."""


@dataclass(frozen=True)
class Contract:
    """All that the settings of a project allow."""

    clauses: tuple[Clause, ...] = ()
    allowances: tuple[Allowance, ...] = ()
    source: str = "pyproject.toml"
    today: date = date.max
    inventory: Rows = ()
    """What each name of this run held; empty where nobody knows it."""

    def of_run(self, inventory: Rows) -> Contract:
        """The same, for a run whose tensors are known by name."""
        return replace(self, inventory=inventory)

    def __call__(self, rule: Rule, fact: Fact) -> str:
        """Why this Fact is allowed although it breaks this rule; "" where nothing allows it in all its places."""
        if not (self.clauses or self.allowances):
            return ""
        places = self._places(fact)
        for one in self.allowances:
            if rule.id in one.rules and not self._expired(one) and _all(places, [Pattern(one.module)]):
                return f"{one.reason} ({Path(self.source).name}, until {one.expires})"
        if fact.kind not in ABOUT_DTYPES or rule.forbid != ["low"] or rule.when.get("what") == "hyperparameter":
            return ""
        speaking = [clause for clause in self.clauses if clause.names(fact)]
        if not speaking or not _all(places, [clause.where for clause in speaking]):
            return ""
        return "; ".join(dict.fromkeys(clause.because for clause in speaking))

    def _places(self, fact: Fact) -> list[Place]:
        """Where this dtype is held in this role; the module that the Fact names where the run's names say nothing."""
        found = []
        optimizer = fact.attrs.get("optimizer")
        told = any("gradient" in held for _, held in self.inventory)
        for name, held in self.inventory:
            trained = "gradient" in held or not told
            for what, dtypes in held.items():
                kind, _, slot = what.partition(".")
                if fact.dtype not in dtypes:
                    continue
                state = fact.role is Role.OPTIMIZER_STATE and slot and optimizer in (None, kind)
                weight = fact.role in WEIGHTS and what == "weight" and (trained or fact.role is Role.FORWARD_WEIGHT)
                gradient = fact.role in (Role.GRADIENT, Role.GRADIENT_ACCUMULATION) and what == "gradient"
                buffer = fact.role is Role.NORM_RUNNING_STATISTICS and what == "buffer"
                if state or weight or gradient or buffer:
                    found.append(Place(name, slot))
        return found or ([Place(fact.module, "")] if fact.module else [])

    def _expired(self, one: Allowance) -> bool:
        return one.expires < self.today

    def expired(self, cwd: Path) -> list[Fact]:
        """A Fact for each allowance whose day is over: it allows nothing any more."""
        path = os.path.relpath(self.source, cwd) if os.path.isabs(self.source) else self.source
        return [
            Fact(
                Kind.SUPPRESSION,
                site=Site(Path(path).as_posix(), one.line),
                detail=f"{one.spelled} in {one.module}, until {one.expires}: {one.reason}",
                attrs={"expired": True},
            )
            for one in self.allowances
            if self._expired(one)
        ]


def _all(places: Sequence[Place], patterns: Sequence[Pattern]) -> bool:
    """Whether each place is covered by a pattern; where no place is known, one for all of them has to be there."""
    if not places:
        return EVERYWHERE in patterns
    return all(any(pattern.covers(place) for pattern in patterns) for place in places)


NOTHING = Contract()
"""What is allowed where nobody said anything."""


def lines_of(text: str, header: str) -> list[int]:
    """The lines on which this table begins in a TOML text, from 1: `[[tool.precaudit.allow]]`."""
    return [number for number, line in enumerate(text.splitlines(), 1) if line.partition("#")[0].strip() == header]
