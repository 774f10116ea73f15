"""What an optimizer holds: its parameters, its state wherever it keeps it, its hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private


def parameters(optimizer: Any) -> list[Tensor]:
    """All tensors in the optimizer's param_groups."""
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]


def trained(optimizer: Any) -> list[Tensor]:
    """The parameters that it moves, frozen ones left out: `w.grad = p.grad.float()` needs no `requires_grad` of w."""
    state = optimizer.state
    return [p for p in parameters(optimizer) if p.requires_grad or p.grad is not None or state.get(p)]


PLAIN = frozenset({Tensor, int, float, bool, str, type(None)})
"""What an optimizer usually keeps for a parameter: no boxes within boxes."""


class Held(NamedTuple):
    """One tensor that an optimizer keeps."""

    name: str
    """The path of its keys and attributes, without numbers: "projector.ortho_matrix"."""
    tensor: Tensor
    parameter: Tensor | None
    """Whose state it is, where the optimizer files it under a parameter."""
    box: int
    """What is kept in one dict or inside one wrapper belongs together: codes and their scales."""
    part: str = ""
    """Which part of a wrapper it is; a tensor that holds its own numbers has none."""


WRAPPED = ("optim", "optimizer", "base_optimizer", "inner_optimizer")
"""Attributes of wrappers that hold another optimizer: ZeroRedundancyOptimizer, Lookahead, SAM."""


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that this one wraps."""
    found = (vars(optimizer).get(name) for name in WRAPPED)
    return [inner for inner in found if isinstance(getattr(inner, "param_groups", None), list)]


def state_tensors(optimizer: Any) -> list[Held]:
    """Every tensor an optimizer keeps from step to step: in its state, in its attributes, in the optimizers it wraps.

    Parameters, their gradients and what shares their memory are no state. An attribute counts where it is filed under
    a parameter or its name, or has the shape of one; scratch buffers and schedules have neither.
    """
    found: dict[int, Held] = {}
    """By `id` of the tensor."""
    for one in (optimizer, *inner_optimizers(optimizer)):
        for held in _kept_by(one):
            found.setdefault(id(held.tensor), held)
    return list(found.values())


def _kept_by(optimizer: Any) -> Iterator[Held]:
    mine = parameters(optimizer)
    own = {id(t) for p in mine for t in (p, p.grad)}
    for owner, state in list(optimizer.state.items()):
        parameter = owner if isinstance(owner, Tensor) else None
        if parameter is not None and type(state) is dict and PLAIN.issuperset(map(type, state.values())):
            box = id(state)  # nearly always, and there are thousands
            yield from [
                Held(name if type(name) is str else "", item, owner, box)
                for name, item in state.items()
                if type(item) is Tensor and id(item) not in own
            ]
            continue
        kept = _nested(owner if isinstance(owner, str) else "", state, parameter, 0, 0)
        yield from (h for h in kept if id(h.tensor) not in own)
    elsewhere = [*_in_groups(optimizer), *_in_attributes(optimizer, {tuple(p.shape) for p in mine})]
    if elsewhere:
        memory = {private.storage_key(private.local(t)) for p in mine for t in (p, p.grad) if t is not None} - {0}
        yield from (h for h in elsewhere if private.storage_key(h.tensor) not in memory)


def _in_groups(optimizer: Any) -> Iterator[Held]:
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params" and isinstance(value, (Tensor, list, tuple, dict)):
                yield from (h for h in _nested(key, value, None, 0, id(group)) if h.tensor.numel() > 1)


def _in_attributes(optimizer: Any, shapes: set[tuple[int, ...]]) -> Iterator[Held]:
    for key, value in list(vars(optimizer).items()):
        if key in ("state", "param_groups", "defaults", *WRAPPED) or key.startswith("_optimizer_"):
            continue
        if not isinstance(value, (Tensor, dict, list, tuple)):
            continue
        filed = list(value.items()) if isinstance(value, dict) else []
        named = bool(filed) and all(isinstance(name, (str, Tensor)) for name, _ in filed)
        for name, item in filed if named else [(None, value)]:
            parameter = name if isinstance(name, Tensor) else None
            for held in _nested(key, item, parameter, 1, id(value)):
                if named or tuple(held.tensor.shape) in shapes:
                    yield held


def _nested(path: str, value: Any, parameter: Tensor | None, depth: int, box: int) -> Iterator[Held]:
    if isinstance(value, Tensor):
        parts = private.parts(value)
        for part, tensor in parts:
            yield Held(path, tensor, parameter, id(value) if part else box, part)
    elif depth > 4:
        return
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            name = key if isinstance(key, str) else ""
            name = f"{path}.{name}".strip(".") if path else name
            if type(item) is Tensor:
                yield Held(name, item, parameter, id(value))
            else:
                yield from _nested(name, item, parameter, depth + 1, id(value))
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        for item in list(value):
            yield from _nested(path, item, parameter, depth + 1, id(value))
    elif hasattr(value, "__dict__") and type(value).__module__ != "builtins" and not isinstance(value, torch.nn.Module):
        for key, item in list(vars(value).items()):
            if isinstance(item, (Tensor, dict, list, tuple)):
                yield from _nested(f"{path}.{key}".strip("."), item, parameter, depth + 1, id(value))


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
    """Bytes this rank holds for the tensor; of a sparse one, its values; of a wrapper, all its parts."""
    if type(tensor) in private.PLAIN and tensor.layout is torch.strided:  # nearly always
        return int(tensor.nbytes)
    total = 0
    for _, own in private.parts(tensor):
        if own.layout is not torch.strided:
            own = own._values() if own.layout is torch.sparse_coo else own.values()
        total += int(own.nbytes)
    return total
