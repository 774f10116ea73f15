"""Checkpoints: whether optimizer state is written lower than it is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, MayEndNow, Saved
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.window import Window
from . import Watcher


class Checkpoints(Watcher):
    """PA602, where training itself writes the file."""

    def __init__(self, bus: Bus, ledger: Ledger, window: Window) -> None:
        self._bus, self._ledger, self._window = bus, ledger, window
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
            self._ledger.once(
                (Checkpoints, low[0].dtype),
                Observation(
                    Kind.CHECKPOINT,
                    DTYPE_NAMES[low[0].dtype],
                    site=user_site(),
                    detail=f"{len(low)} tensors of optimizer state were lowered on the way into the file, "
                    f"after step {self._window.next_step - 1}",
                    attrs={"low": True, "saves_optimizer": True},
                ),
            )
            self._bus.tell(MayEndNow())


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
