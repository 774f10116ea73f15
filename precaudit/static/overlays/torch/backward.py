"""Backward passes: what the loss is, and what happens to gradients that are scaled or summed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import (
    Spot,
    Tensor,
    Value,
)
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import operands, scaling, training

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def backward(torch: Torch, loss: Value, node: Any) -> None:
    """`loss.backward()` and `torch.autograd.backward(loss)`."""
    region = torch.autocast()
    if region is not None and region.spot is not None and region.enabled is not False:
        torch.facts.add(
            Kind.BACKWARD, torch.spot(node), "", None, ("the region begins here", region.spot), autocast=True
        )
    loss = operands.as_tensor(torch, loss)
    marks = operands.marks_of([loss])
    torch.training.trained = True
    training.update(torch, lambda s: frozenset(e for e in s if e[0] != "scaler-stepped"))
    torch.bus.tell(Op(torch, "backward", [loss], {}, [loss], loss, node))
    torch.training.looped |= bool(torch.loops()) and "loss" in marks
    if not marks & {"scaled", "hand_scaled"}:
        torch.training.plain_backward = torch.spot(node)
    torch.training.begun.append((loss, torch.spot(node), bool(torch.loops()) and "loss" in marks))
    _sum_gradients(torch, marks, node)
    if not _scaled(torch, marks, node) and "float16" in marks and not marks & {"hand_scaled", "scaled"}:
        torch.training.unscaled_backward.append((torch.spot(node), torch.float16_region))


def from_gradient(torch: Torch, value: Value, node: Any) -> None:
    """`out.backward(grad)`: whoever computed the gradient knows the loss and whether it is scaled."""
    torch.outside_scaling = torch.training.trained = True
    marks = operands.marks_of([operands.as_tensor(torch, value)])
    _sum_gradients(torch, marks, node)
    _scaled(torch, marks, node)


def _scaled(torch: Torch, marks: frozenset[str], node: Any) -> bool:
    """Notes on the paths which scalers' gradients a backward pass made, if any."""
    keys = [int(mark.split(":")[1]) for mark in marks if mark.startswith("scaler:")]
    if keys:
        scaled_backward(torch, keys, node)
    return bool(keys)


def begins(torch: Torch, loss: Value, spot: Spot) -> None:
    """A backward pass begins at this loss."""
    if isinstance(loss, Tensor) and loss.low and "hand_scaled" not in loss.marks:
        torch.facts.add(
            Kind.HOLDS,
            (loss.low_at if "loss" in loss.marks else None) or loss.spot or spot,
            loss.dtype,
            Role.LOSS,
            ("backward starts from it here", spot),
        )


def _sum_gradients(torch: Torch, marks: frozenset[str], node: Any) -> None:
    """A second backward before the gradients of low parameters are cleared adds to them in their dtype."""
    low = frozenset(mark.removeprefix("weights:") for mark in marks if mark.startswith("weights:"))
    if not low or torch.training.hooked:
        return
    states = torch.interpreter.paths
    if any(("summed", id(node)) in s for s in states):
        torch.training.summed.append((torch.spot(node), low))
    training.update(torch, lambda s: s | {("summed", id(node))})


def scaled_backward(torch: Torch, keys: list[int], node: Any) -> None:
    states = torch.interpreter.paths
    for key in keys:
        lingers = [_unstepped(s, "unscaled", key) for s in states]
        certain = any(_unstepped(s, "unscaled-always", key) for s in states)
        single = len(torch.training.optimizers) + len(torch.training.custom) == 1
        if states and single and (all(lingers) or certain):
            scaling.misuse(torch, "backward-after-unscale", node, False)
        training.update(
            torch,
            lambda s, key=key: frozenset(e for e in s if not (e[0] == "updated" and e[1] == key)) | {("pending", key)},
        )


def _unstepped(state: training.State, kind: str, key: int) -> bool:
    """Whether gradients that this scaler unscaled still wait for their step."""
    return any(e[0] == kind and e[1] == key and ("stepped", key, e[2]) not in state for e in state)
