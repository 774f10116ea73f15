"""Tensors made from nothing: `torch.zeros`, `arange`, `full_like` and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import (
    Const,
    Dtypes,
    Number,
    Seq,
    Spot,
    Tensor,
    Value,
    float_constant,
    is_float,
    is_low,
)
from precaudit.static.overlays.torch import operands, opnames

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def create(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """zeros, full, arange, zeros_like, tensor, …"""
    spot = run.spot(node)
    wanted = operands.dtype_argument(run, kwargs.get("dtype"))
    source = args[0] if args else None
    if wanted is not None:
        dtype, origin = operands.names(wanted), None if wanted.read else wanted.origin
    else:
        dtype, origin = _by_what_it_is_made_from(run, name, args, kwargs)
    zero_dim = _zero_dim(name, source)
    marks = {"created"} | _marks(name, args, dtype)
    if zero_dim and wanted is not None and dtype == frozenset({"float32"}) and name in OF_LITERALS:
        marks |= {"asked_float32"}
    low_at = spot if is_low(dtype) and ("schedule" in marks or "positions" in marks) else None
    made_low = origin if is_low(dtype) else None
    return Tensor(dtype, spot, name, frozenset(marks), zero_dim, run.loops(), low_at=low_at, origin=made_low)


OF_LITERALS = ("tensor", "full", "scalar_tensor")
"""Those that a number is written into."""


def _by_what_it_is_made_from(
    run: Run, name: str, args: list[Value], kwargs: dict[str, Value]
) -> tuple[Dtypes | None, Spot | None]:
    """The dtype where none is asked for, and where that was written: another tensor's, a literal's, the default."""
    source = args[0] if args else None
    if name in opnames.LIKE or name in opnames.NEW or name == "as_tensor":
        return (source.dtype, source.origin) if isinstance(source, Tensor) else (None, None)
    if name == "arange":
        return _literal_dtype(run, args), None
    if name in OF_LITERALS:
        value = args[1] if name == "full" and len(args) > 1 else kwargs.get("fill_value", source)
        return _literal_dtype(run, [value]), None
    return run.default_dtype(), None


def _zero_dim(name: str, source: Value | None) -> bool:
    """Whether it has no dimensions: `tensor(1.0)`, `zeros(())`, the like of one that has none."""
    if name in opnames.LIKE:
        return isinstance(source, Tensor) and source.zero_dim
    if name in ("tensor", "scalar_tensor"):
        return isinstance(source, (Const, Number))
    sized = name in ("zeros", "ones", "full", "empty", "rand", "randn")
    return sized and isinstance(source, Seq) and not source.items and not source.open


def _marks(name: str, args: list[Value], dtype: Dtypes | None) -> set[str]:
    """What the numbers in it are: draws, one number, a schedule, positions."""
    if name in ("zeros", "ones"):
        return {"single"} if args and isinstance(args[0], Const) and args[0].value == 1 else set()
    if name in ("rand", "rand_like"):
        return {"uniform"} if is_low(dtype) else set()
    if name in ("linspace", "logspace"):
        return {"schedule"}
    if name != "arange":
        return set()
    limits = [float_constant(a) for a in args[:2]]
    largest = max((n for n in limits if n is not None), default=None)
    if largest is None or largest > 256:
        return {"positions"}
    return {"small"} if dtype is not None and not is_float(dtype) else set()


def _literal_dtype(run: Run, values: Sequence[Value | None]) -> Dtypes | None:
    found: Dtypes = frozenset()
    for value in values:
        if isinstance(value, Seq):
            inner = _literal_dtype(run, list(value.items))
            if inner is None:
                return None
            found |= inner
        elif isinstance(value, Const) and isinstance(value.value, bool):
            found |= {"bool"}
        elif isinstance(value, Const) and isinstance(value.value, int):
            found |= {"int64"}
        elif isinstance(value, Const) and isinstance(value.value, float):
            default = run.default_dtype()
            if default is None:
                return None
            found |= default
        else:
            return None
    return found if len(found) == 1 else None
