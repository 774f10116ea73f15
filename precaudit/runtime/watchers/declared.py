"""PA504: a dtype that was declared, beside those that the role was seen to hold."""

from __future__ import annotations

from typing import Any

from ...model.vocabulary import FLOATING, Cause, Kind, Role
from ..process.ledger import Observation
from ..trackers.autocast import Autocast
from ..trackers.claims import Account, Declaration, relation
from ..trackers.steps import Steps
from . import Watcher


class Declared(Watcher):
    """Compares once all have told what they saw."""

    def __init__(self, account: Account, autocast: Autocast, steps: Steps) -> None:
        self._account, self._autocast, self._steps = account, autocast, steps

    def complete(self, told: list[Observation]) -> None:
        held: dict[Role, dict[str, Observation]] = {}
        for one in told:
            if one.attrs.get("by") == "dtensor":  # no policy is about a sum inside of a layer
                continue
            if one.kind is Kind.HOLDS and one.role is not None and one.dtype in FLOATING:
                held.setdefault(one.role, {}).setdefault(one.dtype, one)
        said = [one for one in self._account.declarations() if one.chosen != "default"]
        said += self._autocast.declares()
        out: dict[Any, Observation] = {}
        for declaration in said:
            # What another declaration of the same role asks for is not against this one: a float32 head, autocast.
            others = {one.dtype for one in said if one.role is declaration.role and not _carries_out(one, declaration)}
            others.discard(declaration.dtype)
            actual = {d: one for d, one in held.get(declaration.role, {}).items() if d not in others}
            differs = relation(declaration.dtype, actual)
            if differs is not None:
                how, dtype = differs
                out.setdefault(
                    (declaration.role, declaration.dtype, dtype), self._differs(declaration, how, actual[dtype])
                )
        told += out.values()

    def _differs(self, declaration: Declaration, how: str, actual: Observation) -> Observation:
        excuse = "" if how == "lower" or self._steps.on_accelerator() else "this run was on the CPU"
        return Observation(
            Kind.DECLARED,
            declaration.dtype,
            declaration.role,
            declaration.site or actual.site,
            Cause(f"{declaration.dtype} was declared by {declaration.by}", declaration.site),
            actual.module,
            "; ".join(filter(None, (actual.detail, excuse))),
            count=1,
            attrs={"actual": actual.dtype, "relation": how, "chosen": declaration.chosen},
        )


def _carries_out(one: Declaration, other: Declaration) -> bool:
    """Whether an autocast region is only how the other declaration is put into effect."""
    return one.by.startswith("autocast") and other.autocast
