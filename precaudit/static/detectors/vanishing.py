"""PA407 and PA302: a small number, added to guard a division, a root or a logarithm, that is 0 in the dtype."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role, rounds_to
from precaudit.static.language.values import Mark, Spot, Tensor, Value, float_constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import handwritten

TINY: Mark[tuple[float, Spot]] = Mark(lambda one, other: one if other else None)
"""A number that was to keep it from 0 and is 0 itself in its dtype, and where it is written."""


def listen(bus: Bus) -> None:
    bus.on("add add_", _added)
    bus.on("clamp clip clamp_min", lambda op: TINY.put(op.result, _vanishing(op, op.argument(1, "min"))))
    bus.on("sqrt", lambda op: TINY.put(op.result, TINY.of(op.first)))
    bus.on("div divide true_divide", _divided)
    bus.on("div_ addcdiv_", lambda op: _guards_nothing(op, op.operands[-1], "div"), low_only=False)
    bus.on("log log2 log10 reciprocal", lambda op: _guards_nothing(op, op.first, "log"))
    bus.on("rsqrt", lambda op: _guards_nothing(op, op.first, "rsqrt"))


def _added(op: Op) -> None:
    if len(op.tensors) == 1:
        TINY.put(op.result, next((found for found in (_vanishing(op, value) for value in op.plain) if found), None))


def _vanishing(op: Op, value: Value | None) -> tuple[float, Spot] | None:
    number = float_constant(value)
    dtype = op.result.dtype if isinstance(op.result, Tensor) else None
    zero = number and dtype and all(rounds_to(number, name) == "zero" for name in dtype)
    return (number, op.spot) if zero and number else None


def _divided(op: Op) -> None:
    tensors = op.tensors
    if len(tensors) > 1:
        _guards_nothing(op, tensors[-1], "div")


def _guards_nothing(op: Op, value: Value, feeds: str) -> None:
    found = TINY.of(value)
    if found is None or not isinstance(value, Tensor) or not value.low:
        return
    number, spot = found
    if handwritten.current_optimizer(op.run) is not None:
        because = ("it is to guard this", op.spot)
        op.run.facts.add(
            Kind.EPS, spot, value.dtype, Role.OPTIMIZER_STATE, because, f"eps={number:g}", rounds_to="zero"
        )
        return
    detail = f"{number:g} is 0 there"
    op.run.facts.add(
        Kind.CONSTANT, spot, value.dtype, None, None, detail, overflows=False, rounds_to="zero", feeds=feeds
    )
