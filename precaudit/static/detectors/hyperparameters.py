"""PA303: a decay such as 0.999 that becomes 1.0 in its dtype, and a learning rate that is a low tensor."""

from __future__ import annotations

from precaudit.model.vocabulary import FLOATING, Kind, Role
from precaudit.static.language.values import Dtypes, Mark, Seq, Spot, Tensor, Value, float_constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

DECAYS: Mark[tuple[Spot, float]] = Mark()
"""Where a row of numbers was made of which one is a decay that became 1.0, and that number."""


def listen(bus: Bus) -> None:
    bus.on("tensor", _made)
    bus.on("mul_ lerp_ sub rsub pow", _decays, low_only=False)
    bus.on("optimizer", _handed_over, low_only=False)


def _becomes_one(value: Value, dtype: Dtypes | None) -> float | None:
    """A number such as 0.999 that is 1.0 in this dtype."""
    number = float_constant(value)
    if number is None or not dtype or not 0.9 < number < 1.0:
        return None
    exact = all(number > 1.0 - 2.0 ** -(FLOATING[name].mantissa_bits + 2) for name in dtype)
    return number if exact else None


def _made(op: Op) -> None:
    result, given = op.result, op.operand(0)
    if not isinstance(result, Tensor) or not op.dtype_given:
        return
    if isinstance(given, Seq):
        number = next((n for n in (_becomes_one(item, result.dtype) for item in given.items) if n), None)
        DECAYS.put(result, (op.spot, number) if number else None)
        return
    number = _becomes_one(given, result.dtype)
    if number is not None:
        _report(op, op.spot, result.dtype, f"{number:g} becomes 1.0", "decay")


def _decays(op: Op) -> None:
    """`average.mul_(betas[1])`, `1 - betas[1]`: the row holds decays indeed."""
    for value in op.inputs[1:] if op.name.endswith("_") else op.inputs:
        found = DECAYS.of(value)
        if found is not None and isinstance(value, Tensor):
            _report(op, found[0], value.dtype, f"{found[1]:g} becomes 1.0", "decay")


def _handed_over(op: Op) -> None:
    """`Adam(params, lr=torch.tensor(1e-3, dtype=torch.bfloat16))`; betas that became 1 are told above."""
    rate = op.argument(1, "lr")
    if isinstance(rate, Tensor) and rate.low:
        _report(op, rate.origin or rate.spot or op.spot, rate.dtype, "schedules change it in steps of its dtype", "lr")
    betas = op.argument(2, "betas")
    for beta in betas.items if isinstance(betas, Seq) else ():
        if isinstance(beta, Tensor) and beta.low:
            spot = beta.origin or beta.spot or op.spot
            _report(op, spot, beta.dtype, "the average forgets by another share than was asked for", "decay")
            return


def _report(op: Op, spot: Spot, dtype: Dtypes | None, detail: str, key: str) -> None:
    op.run.facts.add(Kind.HOLDS, spot, dtype, Role.OPTIMIZER_STATE, None, detail, what="hyperparameter", key=key)
