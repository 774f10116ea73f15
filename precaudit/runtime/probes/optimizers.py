"""Sees every optimizer step, and takes stock of parameters, gradients and optimizer state around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .. import torch_private as private
from ..window import BACKWARD, FORWARD, OPTIMIZER

if TYPE_CHECKING:
    from ..session import Session


class OptimizerProbe:
    """Global step hooks; a step inside a step (`super().step`, wrappers) counts once, for the outermost."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.depth = 0
        self._outer_phase = 0

    def install(self) -> list[Callable[[], None]]:
        return [
            register_optimizer_step_pre_hook(self._before).remove,
            register_optimizer_step_post_hook(self._after).remove,
        ]

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.session.guard("before step", self.session.before_step, optimizer)
            self._outer_phase = self.session.window.phase
            self.session.window.phase = OPTIMIZER
        else:  # it steps as a part of another one, which is waited for
            self.session.construction.optimizers.discard(optimizer)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # A step that raises never gets here: its pre-hook's depth is given back by the next outermost backward.
        self.depth = max(0, self.depth - 1)
        if self.depth == 0:
            self.session.window.phase = BACKWARD if self._outer_phase == BACKWARD else FORWARD
            self.session.guard("after step", self.session.after_step, optimizer)


def parameters(optimizer: Any) -> list[Tensor]:
    """All tensors in the optimizer's param_groups."""
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]


def state_tensors(optimizer: Any) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(key path without numbers, tensor, the parameter it belongs to) for every tensor inside optimizer.state."""
    inner = getattr(optimizer, "optim", None)  # ZeroRedundancyOptimizer keeps none itself
    state = optimizer.state or getattr(inner, "state", {})
    for owner, held in list(state.items()):
        parameter = owner if isinstance(owner, Tensor) else None
        if isinstance(owner, str):
            yield from _nested(owner, held, parameter, 0)
        else:
            yield from _nested("", held, parameter, 0)


def _nested(path: str, value: Any, parameter: Tensor | None, depth: int) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    if isinstance(value, Tensor):
        yield path, value, parameter
    elif depth > 4:
        return
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            name = str(key) if isinstance(key, str) else ""
            yield from _nested(f"{path}.{name}".strip("."), item, parameter, depth + 1)
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        for item in list(value):
            yield from _nested(path, item, parameter, depth + 1)
    elif hasattr(value, "__dict__") and type(value).__module__ != "builtins" and not isinstance(value, torch.nn.Module):
        for key, item in list(vars(value).items()):
            if isinstance(item, (Tensor, dict, list, tuple)):
                yield from _nested(f"{path}.{key}".strip("."), item, parameter, depth + 1)


def group_tensors(optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Hyperparameters that are tensors: lr, betas, weight_decay and their kin."""
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key == "params":
                continue
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor) and item.dtype.is_floating_point:
                    yield key, item


def nbytes(tensor: Tensor) -> int:
    """Bytes this rank holds for the tensor; of a sparse one, its values."""
    own = private.local(tensor)
    if own.layout is not torch.strided:
        own = own._values() if own.layout is torch.sparse_coo else own.values()
    return int(own.nbytes)
