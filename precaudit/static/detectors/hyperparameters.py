"""PA303: a decay such as 0.999 that becomes 1.0 in its dtype."""

from __future__ import annotations

from precaudit.model.vocabulary import FLOATING, Kind, Role
from precaudit.static.language.values import Tensor, float_constant
from precaudit.static.overlays.events import Bus, Op


def listen(bus: Bus) -> None:
    bus.on("tensor", _made)


def _made(op: Op) -> None:
    number, result = float_constant(op.operand(0)), op.result
    dtype = result.dtype if isinstance(result, Tensor) else None
    if number is None or dtype is None or not 0.9 < number < 1.0 or not op.dtype_given:
        return
    if all(number > 1.0 - 2.0 ** -(FLOATING[name].mantissa_bits + 2) for name in dtype):
        detail = f"{number:g} becomes 1.0"
        op.torch.facts.add(
            Kind.HOLDS, op.spot, dtype, Role.OPTIMIZER_STATE, None, detail, what="hyperparameter", key="decay"
        )
