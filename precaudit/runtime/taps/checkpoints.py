"""Sees `torch.save` inside the window: whether masters or optimizer state are written lower than they are held.

Known limitations: safetensors, distributed checkpoints and pickles of other libraries are not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.lineage import DTYPE_NAMES, LOW

if TYPE_CHECKING:
    from ..session import Session


class CheckpointProbe:
    """PA602 in the window."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def install(self) -> list[Callable[[], None]]:
        return [self.session.patch(torch, "save", self._around_save)]

    def _around_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save(obj: Any, *args: Any, **kwargs: Any) -> Any:
            self.session.guard("torch.save", self._saved, obj)
            return original(obj, *args, **kwargs)

        return save

    def _saved(self, obj: Any) -> None:
        """A file that training can resume from holds optimizer state: that state must be as high as it is held."""
        states = [value for value in _dicts(obj, 0) if "state" in value and "param_groups" in value]
        if not states or not self.session.window.attempts:
            return
        low = [t for state in states for t in _tensors(state["state"], 0) if t.dtype in LOW and t.numel() > 1]
        live = {
            row.dtype
            for row in self.session.ledger.observations.values()
            if row.role is not None and row.role.value == "optimizer_state" and row.attrs.get("what") == "moment"
        }
        if low and DTYPE_NAMES[low[0].dtype] not in live:
            self.session.once(
                ("checkpoint", low[0].dtype),
                Observation(
                    Kind.CHECKPOINT,
                    DTYPE_NAMES[low[0].dtype],
                    site=user_site(),
                    detail=f"{len(low)} tensors of optimizer state were lowered on the way into the file",
                    attrs={"low": True, "saves_optimizer": True},
                ),
            )


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
