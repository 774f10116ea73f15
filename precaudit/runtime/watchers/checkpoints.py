"""Checkpoints: whether optimizer state, or the weights beside it, are written lower than they are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, MayEndNow, Saved
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.optimizers import parameters
from ..trackers.steps import Steps
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import Watcher

FEWEST = 64
"""Elements of a weight that is looked for in the file."""
LOOKED_FOR = 4
"""Weights that are: a file holds all of them in one dtype."""


class Checkpoints(Watcher):
    """PA602, where training itself writes the file."""

    def __init__(self, bus: Bus, ledger: Ledger, window: Window, tensors: Tensors, steps: Steps) -> None:
        self._bus, self._ledger, self._window = bus, ledger, window
        self._tensors, self._steps = tensors, steps
        bus.on(Saved, self._saved)

    def _saved(self, event: Saved) -> None:
        """A file that training can resume from holds optimizer state: that state must be as high as it is held."""
        states = [value for value in _dicts(event.content, 0) if "state" in value and "param_groups" in value]
        if not states or not self._window.attempts:
            return
        low = [t for state in states for t in _tensors(state["state"], 0) if t.dtype in LOW and t.numel() > 1]
        live = {
            row.dtype
            for row in self._ledger.observations.values()
            if row.role is Role.OPTIMIZER_STATE and row.attrs.get("what") == "moment"
        }
        if low and DTYPE_NAMES[low[0].dtype] not in live:
            self._tell(low[0].dtype, f"{len(low)} tensors of optimizer state were lowered on the way into the file")
            return
        weights = self._lowered_weights(event.content, states)
        if weights:
            self._tell(
                weights[0].dtype, "the weights beside the optimizer's state were lowered on the way into the file"
            )

    def _tell(self, dtype: Any, what: str) -> None:
        self._ledger.once(
            (Checkpoints, dtype),
            Observation(
                Kind.CHECKPOINT,
                DTYPE_NAMES[dtype],
                site=user_site(),
                detail=f"{what}, after step {self._window.next_step - 1}",
                attrs={"low": True, "saves_optimizer": True},
            ),
        )
        self._bus.tell(MayEndNow())

    def _lowered_weights(self, content: Any, states: list[Mapping[str, Any]]) -> list[Tensor]:
        """What the file has instead of the float32 weights that are trained: each rounded, and nowhere whole."""
        of_state = {id(tensor) for state in states for tensor in _tensors(state, 0)}
        saved = [tensor for tensor in _tensors(content, 0) if id(tensor) not in of_state]
        if not any(tensor.dtype in LOW for tensor in saved):
            return []
        trained = [p for optimizer in self._steps.built for p in parameters(optimizer) if p.numel() >= FEWEST]
        found = []
        for weight in trained[:LOOKED_FOR]:
            alike = [tensor for tensor in saved if tensor.shape == weight.shape]
            if any(_holds(tensor, weight) for tensor in alike if tensor.dtype not in LOW):
                return []
            own = next((tensor for tensor in alike if tensor.dtype in LOW and _holds(tensor, weight)), None)
            if own is None or (weight.dtype in LOW and self._tensors.of(weight).cast_late is None):
                return []
            found.append(own)
        return found


def _holds(saved: Tensor, weight: Tensor) -> bool:
    """Whether a file's tensor is this weight, rounded or not."""
    return bool(saved.device == weight.device) and torch.equal(saved, weight.detach().to(saved.dtype))


def _dicts(value: Any, depth: int) -> list[Mapping[str, Any]]:
    if not isinstance(value, Mapping) or depth > 3:
        return []
    return [value, *(found for item in value.values() for found in _dicts(item, depth + 1))]


def _tensors(value: Any, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.dtype.is_floating_point else []
    if depth > 4:
        return []
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item, depth + 1)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item, depth + 1)]
    return []
