"""PA403: statistics of a normalisation written by hand, computed in low precision."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Mark, Spot, Tensor, float_constant
from precaudit.static.overlays.events import Bus, Op

SQUARE: Mark[Spot] = Mark()
"""Where the low square or variance stands that this statistic comes from."""


def listen(bus: Bus) -> None:
    bus.on("square var", lambda op: SQUARE.put(op.result, op.spot))
    bus.on("mean sum", lambda op: SQUARE.put(op.result, SQUARE.of(op.first)))
    bus.on("pow", _power)
    bus.on("mul", _product)
    bus.on("add sub div", _combined)
    bus.on("rsqrt sqrt", _root)


def _power(op: Op) -> None:
    exponent = float_constant(op.argument(1, "exponent"))
    if exponent == 2.0:
        SQUARE.put(op.result, op.spot)
    elif exponent in (-0.5, 0.5):
        _root(op)


def _product(op: Op) -> None:
    tensors = op.tensors
    if len(tensors) == 1:
        SQUARE.put(op.result, SQUARE.of(tensors[0]))
    elif len(tensors) == 2 and tensors[0].spot is tensors[1].spot is not None:
        SQUARE.put(op.result, op.spot)


def _combined(op: Op) -> None:
    tensors = op.tensors
    kept = tensors[:-1] if op.name == "div" and len(tensors) > 1 else tensors
    SQUARE.put(op.result, next((spot for spot in map(SQUARE.of, kept) if spot), None))


def _root(op: Op) -> None:
    """A root turns the square into a scale."""
    tensor, square = op.first, SQUARE.of(op.first)
    if square is None or not isinstance(tensor, Tensor) or not tensor.low or "gradient" in tensor.marks:
        return
    if tensor.op not in ("square", "pow") and op.torch.in_forward():
        because = ("its root is taken here", op.spot)
        op.torch.facts.add(Kind.HOLDS, square, tensor.dtype, Role.NORM_COMPUTATION, because, "", hand_written=True)
