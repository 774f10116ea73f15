"""Casts: `.to(...)`, `.half()` and their kin."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import (
    Choice,
    Device,
    DType,
    Opaque,
    Tensor,
    Value,
    is_float,
    is_low,
    joined,
    unknown,
)
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def to(run: Run, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`.to(dtype)`, `.to(device)`, `.to(device, dtype)`, `.to(other)` of a tensor."""
    target = kwargs.get("dtype")
    if target is None:
        for arg in args[1:]:
            if isinstance(arg, DType) or (isinstance(arg, Choice) and all(isinstance(o, DType) for o in arg.options)):
                target = arg
            elif isinstance(arg, Tensor):
                target = DType(arg.dtype or frozenset(), arg.origin)
            elif isinstance(arg, Opaque) and len(args) == 2 and not kwargs:
                # A device, a dtype or a tensor: its dtype is known only if it is a device.
                target = arg if "dtype" in arg.marks else None
                if target is None and not isinstance(arg, Device) and "device" not in arg.marks:
                    return _unknown_cast(args[0])
    dtype = operands.dtype_argument(run, target)
    if dtype is None:
        return args[0]
    return cast(run, args[0], dtype, node)


def _unknown_cast(value: Value) -> Value:
    if isinstance(value, Tensor):
        return replace(value, dtype=None)
    return value


def cast(run: Run, value: Value, dtype: DType, node: Any) -> Value:
    """A tensor cast to a dtype. An opaque value becomes a tensor of that dtype, or stays a module."""
    if isinstance(value, Opaque):
        return Opaque(value.store, operands.names(dtype), value.marks, run.spot(node))
    if not isinstance(value, Tensor):
        return unknown()
    marks = value.marks
    target = operands.names(dtype)
    if target is None:
        return replace(value, dtype=None, notes=joined(value.notes, value.notes, False))
    was_integer = value.dtype is not None and not is_float(value.dtype)
    if was_integer and is_float(target):
        marks |= {"counts"} if "small" in marks or value.dtype == frozenset({"bool"}) else {"counts", "positions"}
    if not is_float(target):
        marks -= {"differentiable", "float16", "bfloat16", "cumulated"}
    spot = run.spot(node)
    region = run.autocast()
    in_region = is_low(target) and region is not None and region.enabled and run.grad() and "differentiable" in marks
    if in_region and value.dtype == frozenset({"float32"}):
        marks |= {"recast"}
    low_at = value.low_at
    if is_low(target) and marks & {"positions", "schedule"}:
        low_at = low_at or spot
    stays_low = is_low(target)
    if value.low and not stays_low and low_at is not None and value.op != "parameter":
        marks |= {"was:" + min(value.dtype or target)}
    made = replace(
        value,
        dtype=target,
        marks=marks
        if not (stays_low and len(target) == 1 and "differentiable" in marks)
        else marks | (target & {"float16"}),
        spot=spot if value.dtype != target else value.spot,
        op="cast" if value.dtype != target else value.op,
        low_at=low_at if is_low(target) or (low_at is not None and marks & {"positions", "schedule"}) else None,
        notes=joined(value.notes, value.notes, stays_low),
        origin=dtype.origin,
    )
    tell(run, "cast", [value, dtype], node, made)
    return made
