"""What an op was given: its tensors, and whether gradients flow through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .dtypes import LOW


def differentiable(args: Iterable[Any]) -> bool:
    """Whether a gradient could flow into this op through a direct argument."""
    for arg in args:  # noqa: SIM110  # no generator: this is asked of every op
        if isinstance(arg, Tensor) and arg.requires_grad:
            return True
    return False


def in_graph(args: Iterable[Any]) -> bool:
    """Whether this op is part of the graph that backward will walk."""
    return torch.is_grad_enabled() and differentiable(args)


def tensors_of(args: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments, those inside lists included."""
    out: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            out.append(arg)
        elif isinstance(arg, (list, tuple)):
            out += [item for item in arg if isinstance(item, Tensor)]
    return out


def targets_of(args: Any, written: tuple[int, ...]) -> list[Tensor]:
    """The tensors that an op writes to, by the positions of the arguments that it writes to."""
    if written == (0,) and isinstance(args[0], Tensor):  # nearly always, and an optimizer's loop has thousands
        return [args[0]]
    return tensors_of(args[index] for index in written if index < len(args))


def sources_of(args: Any, index: int) -> list[Tensor]:
    """The tensors that make the one at this index: foreach ops take lists of each argument."""
    each = (arg[index : index + 1] if isinstance(arg, (list, tuple)) else (arg,) for arg in args)
    return [source for found in each for source in found if isinstance(source, Tensor)]


def any_low(values: Any) -> bool:
    """Whether a low-precision tensor is among these: where none is and nothing is followed, nothing can be lost."""
    for value in values:
        if isinstance(value, Tensor):
            if value.dtype in LOW:
                return True
        elif isinstance(value, (list, tuple)) and any_low(value):
            return True
    return False
