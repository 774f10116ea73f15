"""PA403: statistics of a normalisation written by hand, computed in low precision."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.detectors import reaching
from precaudit.static.language.values import Dtypes, Mark, Seq, Spot, Tensor, float_constant, is_low
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

SQUARE: Mark[Spot] = Mark()
"""Where the low square or variance stands that this statistic comes from."""
SCALE: Mark[Spot] = Mark()
"""Where the low square or deviation stands whose root, or which itself, this is."""


def listen(bus: Bus) -> None:
    bus.on("square var", lambda op: SQUARE.put(op.result, op.spot))
    bus.on("var_mean std_mean", _with_mean, low_only=False)
    bus.on("mean sum", lambda op: SQUARE.put(op.result, SQUARE.of(op.first)))
    bus.on("pow", _power)
    bus.on("mul", _product)
    bus.on("add sub div", _combined)
    bus.on("rsqrt sqrt", _root)
    bus.on("std", lambda op: SCALE.put(op.result, op.spot))
    bus.on("add clamp clamp_min", lambda op: SCALE.put(op.result, SCALE.of(op.first)))
    bus.on("mul div", _scaled, low_only=False)


def _with_mean(op: Op) -> None:
    first = op.result.items[0] if isinstance(op.result, Seq) else op.result
    if isinstance(first, Tensor) and first.low:
        (SQUARE if op.name == "var_mean" else SCALE).put(first, op.spot)


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
    if tensor.op in ("square", "pow"):
        return
    SCALE.put(op.result, square)
    if op.run.in_forward():
        _report(op, square, tensor.dtype, "its root is taken here")


def _scaled(op: Op) -> None:
    """Something is divided by a low scale: what is trained, or what a loss is made of; a mean of its own is nothing."""
    one, other = op.operand(0), op.operand(1)
    pairs = [(one, other)] if op.name == "div" else [(one, other), (other, one)]
    for value, scale in pairs:
        square = SCALE.of(scale)
        if square is None or not isinstance(value, Tensor) or not isinstance(scale, Tensor) or not is_low(scale.dtype):
            continue
        if "gradient" in value.marks | scale.marks or value.zero_dim or "weights" in value.marks:
            continue
        if "differentiable" in value.marks and op.run.grad():
            _report(op, square, scale.dtype, "something is divided by its root here")
        else:
            reaching.enters(op.result, reaching.Rounded(square, scale.dtype or frozenset(), _entered))


def _entered(op: Op, found: reaching.Rounded) -> None:
    _report(op, found.spot, found.dtype, "what was divided by it is in the loss that is differentiated here")


def _report(op: Op, square: Spot, dtype: Dtypes | None, how: str) -> None:
    because = (how, op.spot)
    op.run.facts.add(Kind.HOLDS, square, dtype, Role.NORM_COMPUTATION, because, "", hand_written=True)
