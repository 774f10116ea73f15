"""In which dtype each module computes: its matmuls, its softmaxes, its losses, by the module's name."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor

from ...model.vocabulary import Role
from ..dtypes import DTYPE_NAMES
from ..operations import FORWARD, Heard, Op, Operations
from ..optable import LOSS_KERNELS, MATMULS
from ..sites import running_module
from .modules import Modules
from .window import Window

SOFTMAXES = frozenset({"_softmax", "_log_softmax", "_safe_softmax", "logsumexp"})
LOSSES = LOSS_KERNELS | {"nll_loss_forward", "nll_loss2d_forward", "nll_loss"}
COMPUTED = {
    **dict.fromkeys(MATMULS, Role.MATMUL_COMPUTE.value),
    **dict.fromkeys(SOFTMAXES, Role.SOFTMAX.value),
    **dict.fromkeys(LOSSES, Role.LOSS.value),
}
"""Aten op -> the role of its result."""


class Computing:
    """Hears a few ops of the forward passes inside the window; what no module's call is around has no name."""

    def __init__(self, operations: Operations, window: Window, modules: Modules) -> None:
        self._window, self._modules = window, modules
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.held: dict[str, dict[str, set[str]]] = {}
        """Name of the module -> role -> the dtypes of the results: {"blocks.0.attn": {"softmax": {"float32"}}}."""
        operations.on(self._choose)

    def _choose(self, op: Op) -> Iterable[Heard]:
        what = COMPUTED.get(op.name) if op.aten else None
        if what is not None:
            yield Heard(FORWARD, partial(self._computed, what))

    def _computed(self, what: str, name: str, args: Any, kwargs: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        module = running_module() if self._window.tracing and isinstance(first, Tensor) else None
        if module is None:
            return
        known = self._names.get(module)
        if known is None:
            known = self._names[module] = self._modules.module_name(module) or class_of(module)
        dtype = DTYPE_NAMES.get(first.dtype) or str(first.dtype).removeprefix("torch.")
        self.held.setdefault(known, {}).setdefault(what, set()).add(dtype)


def class_of(module: Any) -> str:
    """The name of a module's class, as the user wrote it: FSDP2 puts one of its own in front."""
    bases = type(module).__bases__
    return (bases[1] if len(bases) == 2 and bases[0].__name__ == "FSDPModule" else type(module)).__name__
