"""PA413: targets far from 0 that were rounded before a loss compares anything with them."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.detectors import reaching
from precaudit.static.language.values import Dtypes, Mark, Spot, Tensor, float_constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

FAR: Mark[bool] = Mark(stays=True)
"""A constant much larger than the spread of what it was added to: only the last digits tell one value from another."""
TARGET: Mark[tuple[Spot, Dtypes]] = Mark(stays=True)
"""Where such values were cast low, and the dtype."""
FAR_FROM = 100.0
"""A spread of 1 around it takes two digits of the two or three that bfloat16 has."""
REGRESSIONS = "mse_loss l1_loss smooth_l1_loss huber_loss"


def listen(bus: Bus) -> None:
    bus.on("add sub rsub", _moved, low_only=False)
    bus.on("add sub neg", lambda op: _passed(op) if len(op.tensors) == 1 else None, low_only=False)
    bus.on("to half bfloat16 type type_as", _cast)
    bus.on(REGRESSIONS, _compared, low_only=False)
    bus.on("sub rsub", _subtracted, low_only=False)


def _moved(op: Op) -> None:
    """`1000 + x`, where x is drawn or read and not computed by what is trained."""
    offsets = [number for number in map(float_constant, op.plain) if number is not None]
    learnt = any("differentiable" in tensor.marks for tensor in op.tensors)
    moved = not learnt and any(abs(number) >= FAR_FROM for number in offsets)
    with_noise = op.name == "add" and len(op.tensors) == 2 and any(FAR.of(tensor) for tensor in op.tensors)
    if moved or with_noise:
        FAR.put(op.result, True)


def _passed(op: Op) -> None:
    FAR.put(op.result, FAR.of(op.result) or FAR.of(op.first))
    TARGET.put(op.result, TARGET.of(op.result) or TARGET.of(op.first))


def _cast(op: Op) -> None:
    if FAR.of(op.first) and isinstance(op.result, Tensor) and op.result.dtype:
        TARGET.put(op.result, (op.spot, op.result.dtype))


def _compared(op: Op) -> None:
    target = op.argument(1, "target")
    found = TARGET.of(target) if target is not None else None
    if found is not None and op.run.grad():
        _report(op, *found)


def _subtracted(op: Op) -> None:
    """`(prediction - target).square()`."""
    found = [TARGET.of(tensor) for tensor in op.tensors]
    if len(found) == 2 and any(found) and any("differentiable" in tensor.marks for tensor in op.tensors):
        spot, dtype = next(one for one in found if one)
        reaching.enters(op.result, reaching.Rounded(spot, dtype, lambda op, rounded: _report(op, spot, dtype)))


def _report(op: Op, spot: Spot, dtype: Dtypes) -> None:
    because = ("a loss compares with them here", op.spot)
    op.run.facts.add(Kind.OP, spot, dtype, None, because, op="low-precision-target")
