"""Tells what `torch.save` is called with.

Known limitations: safetensors, distributed checkpoints and pickles of other libraries are not seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..events import Bus, Saved
from ..patching import Undo, patch
from . import Tap


class SaveTap(Tap):
    """The content is told as it is before it is written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def install(self) -> list[Undo]:
        return [patch(torch, "save", self._around)]

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save(obj: Any, *args: Any, **kwargs: Any) -> Any:
            self._bus.tell(Saved(obj))
            return original(obj, *args, **kwargs)

        return save
