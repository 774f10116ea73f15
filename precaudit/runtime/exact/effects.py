"""How far the rounding of one operation moved the loss: its error times the gradient that comes back to its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from .rows import Row

FORWARD = frozenset(("_softmax", "_log_softmax"))
BACKWARD = frozenset(("_softmax_backward_data", "_log_softmax_backward_data"))
"""Of these: the gradient of the result, and the result."""

LARGEST = 1 << 22
"""Elements of a result whose error is kept."""
MOST = 64
"""Results whose errors are kept at once."""


class Effects:
    """Those of the softmaxes of one step whose results are low."""

    def __init__(self) -> None:
        self._errors: dict[int, tuple[Row, Tensor, Tensor]] = {}
        """Storage of a result -> its row, the result, which is held until backward, and its error."""
        self._root: Tensor | None = None
        self._moved: list[tuple[Row, Tensor]] = []

    def begins(self, root: Tensor) -> None:
        """Backward begins from this loss, scaled or not."""
        self._root = root.detach().double().sum()

    def gave(self, name: str, row: Row, result: Tensor, alone: Tensor) -> None:
        """An operation's result, and what float64 makes of the same inputs."""
        if name in FORWARD and result.dtype in LOW and result.numel() <= LARGEST and len(self._errors) < MOST:
            error = (result.double() - alone).to(torch.float32)
            self._errors[private.storage_key(result)] = (row, result, error)

    def met(self, name: str, args: Any) -> None:
        """A gradient comes back to a result."""
        if name in BACKWARD and self._root is not None and len(args) > 1:
            found = self._errors.pop(private.storage_key(args[1]), None)
            if found is not None and found[2].shape == args[0].shape:
                moved = (args[0].double() * found[2]).sum() / self._root
                self._moved.append((found[0], moved.abs()))

    def settle(self) -> None:
        """Reads what is on the device."""
        self._errors.clear()
        for row, moved in self._moved:
            share = float(moved)
            if share < float("inf"):
                row.loss = max(row.loss, share)
        self._moved.clear()
