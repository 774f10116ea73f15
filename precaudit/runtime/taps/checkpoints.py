"""Tells what `torch.save` and an optimizer's `load_state_dict` are called with.

Known limitations: safetensors, distributed checkpoints and pickles of other libraries are not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..events import Bus, OptimizerLoaded, Saved
from ..patching import Undo, patch
from . import Tap


class CheckpointTap(Tap):
    """The content is told as it is before it is written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def install(self) -> Iterable[Undo]:
        yield patch(torch, "save", self._around_save)
        yield patch(torch.optim.Optimizer, "load_state_dict", self._around_load)

    def _around_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save(obj: Any, *args: Any, **kwargs: Any) -> Any:
            self._bus.tell(Saved(obj))
            return original(obj, *args, **kwargs)

        return save

    def _around_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(optimizer: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            self._bus.tell(OptimizerLoaded(optimizer, state_dict))
            return original(optimizer, state_dict, *args, **kwargs)

        return load_state_dict
