"""PA406: a number that is not finite in the dtype it is written into."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, rounds_to
from precaudit.static.language.values import Tensor, Value, float_constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch.opnames import POINTWISE

ARITHMETIC = [name for name, kind in POINTWISE.items() if kind in ("Add", "Subtract", "Multiply")] + ["where"]
FILLS = {"full": 1, "full_like": 1, "new_full": 2, "masked_fill": 2, "masked_fill_": 2, "fill_": 1, "__setitem__": 2}
"""Operation -> the place of the number that it writes."""


def listen(bus: Bus) -> None:
    bus.on(ARITHMETIC, _combined)
    bus.on(FILLS, lambda op: _overflows(op, op.argument(FILLS[op.name], "fill_value") or op.kwargs.get("value")))
    bus.on("tensor", lambda op: _overflows(op, op.operand(0)))


def _combined(op: Op) -> None:
    for value in op.plain:
        _overflows(op, value)


def _overflows(op: Op, value: Value | None) -> None:
    number = float_constant(value)
    dtype = op.result.dtype if isinstance(op.result, Tensor) else None
    if number is not None and dtype and all(rounds_to(number, name) == "inf" for name in dtype):
        detail = f"{number:g} is not finite there"
        op.run.facts.add(Kind.CONSTANT, op.spot, dtype, None, None, detail, overflows=True)
