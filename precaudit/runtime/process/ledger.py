"""Counts what the probes saw, by key, and reads measured numbers off the device once per step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Fact, Kind, Role
from ..events import Boundary, Bus
from ..observation import Observation
from ..settings import Settings


class Ledger:
    """Observations by key, each made once and then only counted."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self.observations: dict[Hashable, Observation] = {}
        self._of: dict[Hashable, list[Any]] = {}
        """Owner -> the keys of what it last renewed."""
        self.measures = settings.values != "off"
        """False where nothing beyond dtypes is to be measured."""
        self._without = settings.preflight is not None and settings.preflight()["values"] == "none"
        self._deferred: list[tuple[list[Tensor], Callable[[list[float]], None]]] = []
        bus.on(Boundary, lambda event: self.settle())

    def get(self, key: Hashable) -> Observation | None:
        return self.observations.get(key)

    def put(self, key: Hashable, observation: Observation) -> Observation:
        """Keeps an observation under a key, in place of what stood there."""
        self.observations[key] = observation
        return observation

    def renew(self, owner: Hashable, rows: Mapping[Any, Observation]) -> None:
        """Puts these in place of all that the same owner last put: what is gone is said no more."""
        for key in self._of.get(owner, ()):
            self.observations.pop(key, None)
        self._of[owner] = list(rows)
        self.observations.update(rows)

    def holds(self, role: Role, dtype: str) -> bool:
        """Whether something was seen to hold this role in this dtype."""
        seen = (one for one in self.observations.values() if one.kind is Kind.HOLDS and one.confirmed)
        return any(one.role is role and one.dtype == dtype for one in seen)

    def once(self, key: Hashable, observation: Observation) -> Observation:
        """The observation under this key, made now if it is new, counted once more."""
        seen = self.get(key) or self.put(key, observation)
        seen.count += 1
        return seen

    def defer(self, numbers: list[Tensor], use: Callable[[list[float]], None]) -> None:
        """Has `use` called with the values of these tensors, in order, at the next `settle`; no sync until then."""
        if self.measures:
            self._deferred.append((numbers, use))

    def settle(self) -> None:
        """Reads every deferred number: one transfer per device and dtype."""
        waiting, self._deferred = self._deferred, []
        together: dict[Any, list[Tensor]] = {}
        for numbers, _ in waiting:
            for number in numbers:
                together.setdefault((number.device, number.dtype), []).append(number.reshape(-1))
        read = {kind: iter(torch.cat(held).cpu().double().tolist()) for kind, held in together.items()}
        for numbers, use in waiting:
            values: list[float] = []
            for number in numbers:
                values += islice(read[number.device, number.dtype], number.numel())
            use(values)

    def notes(self) -> list[str]:
        """What to say of it in the report."""
        if self.measures:
            return []
        why = "--fake" if self._without else "--values off"
        return [f"whether losses, gradients and parameters are finite was not observed ({why})"]

    def facts(self) -> list[Fact]:
        return [seen.fact() for seen in self.observations.values() if seen.confirmed]


__all__ = ["Ledger", "Observation"]
