"""Lightning's Trainer: the precision it was given, which on some devices is not the one it uses."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from ...model.frameworks import framework
from ...model.vocabulary import LOW, Cause, Kind, Role, Site
from ..dtypes import DTYPE_NAMES
from ..guard import Guard
from ..patching import patch
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.claims import Declaration
from . import Framework, imported

MIXED = framework("lightning").dtypes("autocast")
TRUE = framework("lightning").dtypes("parameters")
"""Lightning's words for its `precision`."""


class Written(NamedTuple):
    """What the user asked for, and where."""

    precision: str
    site: Site | None


class Lightning(Framework):
    """Trainer forgets the word it was given where it replaces it, so it is remembered here."""

    title = "Lightning"
    order = 50
    classes = ("lightning.pytorch",)
    awaits = ("lightning.pytorch.trainer.trainer",)
    maker = ("lightning.pytorch.trainer.trainer", "Trainer")
    """The class that takes a `precision`."""

    def __init__(self, guard: Guard, ledger: Ledger) -> None:
        self._guard, self._ledger = guard, ledger
        self._written: weakref.WeakKeyDictionary[Any, Written] = weakref.WeakKeyDictionary()

    def install(self) -> Iterable[Callable[[], None]]:
        return [patch(kind, "__init__", self._around_init) for kind in imported(*self.maker)]

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(trainer: Any, *args: Any, **kwargs: Any) -> None:
            self._guard("a Trainer", self._written_here, trainer, kwargs.get("precision"))
            original(trainer, *args, **kwargs)

        return __init__

    def _written_here(self, trainer: Any, precision: Any) -> None:
        self._written[trainer] = Written(str(precision or ""), user_site())

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        for precision, site in dict.fromkeys(self._written.values()):
            if found is not None and TRUE.get(precision) == DTYPE_NAMES.get(parameter.dtype):
                return Cause(f'{self.maker[1]}(precision="{precision}") casts the parameters', site)
        return None

    def declares(self) -> Iterable[Declaration]:
        for precision, site in dict.fromkeys(self._written.values()):
            if precision in MIXED:
                by = f'{self.maker[1]}(precision="{precision}")'
                yield Declaration(Role.MATMUL_COMPUTE, MIXED[precision], by, site, autocast=True)

    def observes(self) -> Iterable[Observation]:
        for precision, site in dict.fromkeys(self._written.values()):
            dtype = TRUE.get(precision)
            if dtype in LOW and self._ledger.holds(Role.MASTER_WEIGHT, dtype):
                yield Observation(
                    Kind.CONFIG,
                    dtype,
                    Role.MASTER_WEIGHT,
                    site,
                    detail=f'{self.maker[1]}(precision="{precision}")',
                    count=1,
                    attrs={"key": "precision", "precision": precision},
                )
