"""Hyperparameters that are tensors: step counts that stop counting, decays that round to one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..process.ledger import Ledger, Observation
from ..trackers.contents import HYPERPARAMETER, OptimizerRead, made_at
from ..trackers.modules import Modules
from ..trackers.tensors import Tensors
from . import Watcher


class Hyperparameters(Watcher):
    """PA303, as they are after each step."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors, modules: Modules) -> None:
        self._ledger, self._tensors, self._modules = ledger, tensors, modules
        bus.on(OptimizerRead, self._optimizer_read)

    def _optimizer_read(self, event: OptimizerRead) -> None:
        rows = {
            (Hyperparameters, id(event.optimizer), key, dtype): self._row(event.optimizer, key, tensors)
            for (key, dtype), tensors in event.scalars.items()
            if dtype in LOW and HYPERPARAMETER.search(key)
        }
        self._ledger.renew((Hyperparameters, id(event.optimizer)), rows)

    def _row(self, optimizer: Any, key: str, tensors: list[Tensor]) -> Observation:
        name, dtype = type(optimizer).__name__, DTYPE_NAMES[tensors[0].dtype]
        stops = f"; stops counting at {FLOATING[dtype].max_exact_integer}" if "step" in key else ""
        return Observation(
            Kind.HOLDS,
            dtype,
            Role.OPTIMIZER_STATE,
            made_at(self._tensors, tensors) or self._modules.built_at.get(optimizer),
            detail=f"{name} {key}{stops}",
            count=len(tensors),
            attrs={"what": "hyperparameter", "key": key, "optimizer": name},
        )
