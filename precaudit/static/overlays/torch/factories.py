"""Tensors made from nothing: `torch.zeros`, `arange`, `full_like` and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import (
    Const,
    Dtypes,
    Number,
    Seq,
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
    dtype: Dtypes | None
    origin = None
    marks: set[str] = {"created"}
    zero_dim = False
    if wanted is not None:
        dtype, origin = operands.names(wanted), None if wanted.read else wanted.origin
    elif name in opnames.LIKE or name in opnames.NEW or name == "as_tensor":
        dtype = source.dtype if isinstance(source, Tensor) else None
        origin = source.origin if isinstance(source, Tensor) else None
    elif name in ("arange", "tensor", "full", "scalar_tensor"):
        value = args[1] if name == "full" and len(args) > 1 else kwargs.get("fill_value", source)
        dtype = _literal_dtype(run, args if name == "arange" else [value])
    else:
        dtype = run.default_dtype()
    if name in opnames.LIKE or name in opnames.NEW:
        zero_dim = isinstance(source, Tensor) and source.zero_dim and name in opnames.LIKE
    elif name in ("tensor", "scalar_tensor"):
        zero_dim = isinstance(source, (Const, Number))
    elif name in ("zeros", "ones", "full", "empty", "rand", "randn"):
        zero_dim = isinstance(source, Seq) and not source.items and not source.open
    low_at = None
    if (
        zero_dim
        and wanted is not None
        and dtype == frozenset({"float32"})
        and name in ("tensor", "full", "scalar_tensor")
    ):
        marks.add("asked_float32")
    if isinstance(source, Const) and source.value == 1 and name in ("zeros", "ones"):
        marks.add("single")
    if name in ("rand", "rand_like") and is_low(dtype):
        marks.add("uniform")
    if name in ("linspace", "logspace"):
        marks.add("schedule")
        low_at = spot if is_low(dtype) else None
    if name == "arange":
        limit = [float_constant(a) for a in args[:2]]
        largest = max((n for n in limit if n is not None), default=None)
        if largest is None or largest > 256 or len(args) == 0:
            marks.add("positions")
            low_at = spot if is_low(dtype) else None
        elif dtype is not None and not is_float(dtype):
            marks.add("small")
    return Tensor(
        dtype,
        spot,
        name,
        frozenset(marks),
        zero_dim,
        run.loops(),
        low_at=low_at,
        origin=origin if is_low(dtype) else None,
    )


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
