"""What a call gives of which nothing is known but what went in."""

from __future__ import annotations

from typing import Any

from precaudit.static.language.values import Opaque, Scaler, Value
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import operands, optimizers


def result(run: Run, values: list[Value], node: Any) -> Value:
    """What comes back from something unknown that was called with these: what may be low in there, and scaled."""
    marks = operands.marks_of([operands.as_tensor(run, v) for v in values]) & (
        operands.KEPT - {"weights", "gradient", "positions", "counts"}
    )
    region = run.autocast()
    if not run.grad():
        marks -= {"float16", "bfloat16", "differentiable"}
    elif region is not None and region.enabled is None and region.dtype == frozenset({"bfloat16"}):
        marks |= region.dtype
    elif region is not None and region.enabled is True and region.dtype is not None and len(region.dtype) == 1:
        low = region.dtype & {"float16", "bfloat16"}
        marks |= low
        if low == {"float16"}:
            run.float16_region = region.spot
    if run.grad() and (halved := [v for v in values if isinstance(v, Opaque) and optimizers.trains(run, v)]):
        marks |= {"float16", "differentiable"}
        run.float16_region = halved[0].store.get("spot")
    if any(isinstance(v, Scaler) for v in values):
        run.training.outside_scaling = True
    return Opaque(marks=marks)
