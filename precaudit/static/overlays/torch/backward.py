"""Backward passes: what they begin at, and whether anything scaled it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import Value
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def backward(run: Run, loss: Value, node: Any) -> None:
    """`loss.backward()` and `torch.autograd.backward(loss)`."""
    training = run.training
    loss = operands.as_tensor(run, loss)
    marks, spot = operands.marks_of([loss]), run.spot(node)
    in_loop = bool(run.loops()) and "loss" in marks
    training.trained = True
    training.looped |= in_loop
    training.begun.append((loss, spot, in_loop))
    tell(run, "backward", [loss], node)
    if not marks & {"scaled", "hand_scaled"}:
        training.plain_backward = spot
        if "float16" in marks:
            training.unscaled_backward.append((spot, run.float16_region))


def gradients_asked(run: Run, loss: Value, node: Any) -> None:
    """`torch.autograd.grad(loss, parameters)`: what somebody does who updates weights by hand."""
    run.training.trained = True
    run.training.begun.append((loss, run.spot(node), bool(run.loops()) and "loss" in operands.marks_of([loss])))


def from_gradient(run: Run, value: Value, node: Any) -> None:
    """`out.backward(grad)`: whoever computed the gradient knows the loss and whether it is scaled."""
    run.training.outside_scaling = run.training.trained = True
    tell(run, "backward.gradient", [operands.as_tensor(run, value)], node)
