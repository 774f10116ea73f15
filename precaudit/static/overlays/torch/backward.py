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
from precaudit.static.overlays.torch import operands, paths, scaling

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def backward(run: Run, loss: Value, node: Any) -> None:
    """`loss.backward()` and `torch.autograd.backward(loss)`."""
    region = run.autocast()
    if region is not None and region.spot is not None and region.enabled is not False:
        run.facts.add(Kind.BACKWARD, run.spot(node), "", None, ("the region begins here", region.spot), autocast=True)
    loss = operands.as_tensor(run, loss)
    marks = operands.marks_of([loss])
    run.training.trained = True
    paths.update(run, lambda s: frozenset(e for e in s if e[0] != "scaler-stepped"))
    run.bus.tell(Op(run, "backward", [loss], {}, [loss], loss, node))
    run.training.looped |= bool(run.loops()) and "loss" in marks
    if not marks & {"scaled", "hand_scaled"}:
        run.training.plain_backward = run.spot(node)
    run.training.begun.append((loss, run.spot(node), bool(run.loops()) and "loss" in marks))
    _sum_gradients(run, marks, node)
    if not _scaled(run, marks, node) and "float16" in marks and not marks & {"hand_scaled", "scaled"}:
        run.training.unscaled_backward.append((run.spot(node), run.float16_region))


def from_gradient(run: Run, value: Value, node: Any) -> None:
    """`out.backward(grad)`: whoever computed the gradient knows the loss and whether it is scaled."""
    run.outside_scaling = run.training.trained = True
    marks = operands.marks_of([operands.as_tensor(run, value)])
    _sum_gradients(run, marks, node)
    _scaled(run, marks, node)


def _scaled(run: Run, marks: frozenset[str], node: Any) -> bool:
    """Notes on the paths which scalers' gradients a backward pass made, if any."""
    keys = [int(mark.split(":")[1]) for mark in marks if mark.startswith("scaler:")]
    if keys:
        scaled_backward(run, keys, node)
    return bool(keys)


def begins(run: Run, loss: Value, spot: Spot) -> None:
    """A backward pass begins at this loss."""
    if isinstance(loss, Tensor) and loss.low and "hand_scaled" not in loss.marks:
        run.facts.add(
            Kind.HOLDS,
            (loss.low_at if "loss" in loss.marks else None) or loss.spot or spot,
            loss.dtype,
            Role.LOSS,
            ("backward starts from it here", spot),
        )


def _sum_gradients(run: Run, marks: frozenset[str], node: Any) -> None:
    """A second backward before the gradients of low parameters are cleared adds to them in their dtype."""
    low = frozenset(mark.removeprefix("weights:") for mark in marks if mark.startswith("weights:"))
    if not low or run.training.hooked:
        return
    states = run.interpreter.paths
    if any(("summed", id(node)) in s for s in states):
        run.training.summed.append((run.spot(node), low))
    paths.update(run, lambda s: s | {("summed", id(node))})


def scaled_backward(run: Run, keys: list[int], node: Any) -> None:
    states = run.interpreter.paths
    for key in keys:
        lingers = [_unstepped(s, "unscaled", key) for s in states]
        certain = any(_unstepped(s, "unscaled-always", key) for s in states)
        single = len(run.training.optimizers) + len(run.training.custom) == 1
        if states and single and (all(lingers) or certain):
            scaling.misuse(run, "backward-after-unscale", node, False)
        paths.update(
            run,
            lambda s, key=key: frozenset(e for e in s if not (e[0] == "updated" and e[1] == key)) | {("pending", key)},
        )


def _unstepped(state: paths.State, kind: str, key: int) -> bool:
    """Whether gradients that this scaler unscaled still wait for their step."""
    return any(e[0] == kind and e[1] == key and ("stepped", key, e[2]) not in state for e in state)
