"""Reads values as tensors, arguments as dtypes, and the marks that pass from operands to results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import (
    Bound,
    Choice,
    Const,
    Dict,
    DType,
    Dtypes,
    Instance,
    Opaque,
    Optimizer,
    Param,
    Scaler,
    Seq,
    Tensor,
    Value,
    is_low,
    join_dtypes,
)
from precaudit.static.overlays.torch import opnames

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


MAX_NESTED = 6
"""Objects in objects that are looked through for something low."""
LOW_NAME = re.compile(r"(?:torch\.)?(?:bf16|bfloat16|fp16|float16|half)|(?:bf)?16-(?:mixed|true)")
"""Words for a low dtype on a command line or in a config."""

OF_FUNCTIONS = "input x A tensors tensor outputs optimizer data d modules model".split()
OF_METHODS = "other src end exponent tensor1 outputs optimizer state_dict".split()
"""What torch calls a first parameter."""


def in_front(names: Sequence[str], args: list[Value], kwargs: dict[str, Value]) -> tuple[list[Value], dict[str, Value]]:
    """The arguments of a call of torch, the first by its place where it was given by one of these names."""
    first = None if args else next((name for name in names if name in kwargs), None)
    if first is None:
        return args, kwargs
    return [kwargs[first]], {name: value for name, value in kwargs.items() if name != first}


def as_tensor(run: Run, value: Value) -> Value:
    """A parameter read as a tensor; a choice of tensors as one; anything else as it is."""
    if type(value) is Tensor:
        return value
    if isinstance(value, Param):
        return _read_parameter(run, value)
    if isinstance(value, Bound):
        return held(value)
    if isinstance(value, Opaque) and value.dtype is not None:
        return Tensor(value.dtype, value.spot, "", value.marks)
    if isinstance(value, Choice):
        tensors = [as_tensor(run, option) for option in value.options]
        known = [t for t in tensors if isinstance(t, Tensor)]
        if len(known) == len(tensors):
            dtype = known[0].dtype
            marks = known[0].marks
            for other in known[1:]:
                dtype, marks = join_dtypes(dtype, other.dtype), marks | other.marks
            return replace(known[0], dtype=dtype, marks=marks)
    return value


def held(value: Bound) -> Value:
    """`outputs.loss` of something unknown: one more unknown thing, the same each time; of anything else, itself."""
    if not isinstance(value.receiver, Opaque):
        return value
    found: Value = value.receiver.store.setdefault("value:" + value.name, Opaque(marks=value.receiver.marks))
    return found


def _read_parameter(run: Run, value: Param) -> Tensor:
    marks = {"weights"}
    dtype = value.dtype
    tracked = run.grad() and not value.detached
    if value.store.get("kind") != "buffer":
        marks.add("learnt")
    if value.store.get("kind") != "buffer" and value.trainable is not False and tracked:
        marks.add("differentiable")
        if is_low(dtype) and dtype is not None and len(dtype) == 1:
            marks.add("weights:" + min(dtype))
    if value.store.get("positions"):
        marks.add("positions")
    spot = value.store.get("spot")
    low_at = spot if "positions" in marks and is_low(dtype) else None
    zero_dim = value.store.get("zero_dim") is True
    return Tensor(dtype, spot, "parameter", frozenset(marks), zero_dim, low_at=low_at, origin=value.store.get("origin"))


def marks_of(values: Iterable[Value]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for value in values:
        if isinstance(value, (Tensor, Opaque)):
            found |= value.marks
        elif isinstance(value, (Seq, Choice)):
            found |= marks_of(value.items if isinstance(value, Seq) else value.options)
        elif isinstance(value, Param):
            found |= {"weights"}
    return found


def holds_low(value: Any, depth: int = 0) -> bool:
    """Whether something low is in it, or a loss scaler: what decides how those train that it is handed to."""
    if isinstance(value, Scaler):
        return value.enabled is not False
    if isinstance(value, (Tensor, Param)):
        return is_low(value.dtype)
    if isinstance(value, DType):
        return is_low(value.names)
    if isinstance(value, (Seq, Choice)):
        return any(holds_low(item, depth) for item in (value.items if isinstance(value, Seq) else value.options))
    if isinstance(value, Const):
        return isinstance(value.value, str) and LOW_NAME.fullmatch(value.value) is not None
    if isinstance(value, Opaque):
        return is_low(value.dtype or value.store.get("dtype"))
    if isinstance(value, Optimizer):
        return any(holds_low(param) for param in value.store["params"])
    if isinstance(value, (Instance, Dict)) and depth < MAX_NESTED:
        return any(holds_low(inner, depth + 1) for inner in value.store.values() if isinstance(inner, Value))
    return False


def dtype_argument(run: Run, value: Value | None) -> DType | None:
    """The dtype that a `dtype=` argument gives; a DType with no names where it is given and not known."""
    if value is None or (isinstance(value, Const) and value.value is None):
        return None
    if isinstance(value, DType):
        return value
    if isinstance(value, Const) and isinstance(value.value, str):
        name = opnames.DTYPE_NAMES.get(value.value.removeprefix("torch."))
        return DType(frozenset({name})) if name else DType(frozenset())
    if isinstance(value, Choice):
        found = [dtype_argument(run, option) for option in value.options]
        if all(d is not None and d.names for d in found):
            return DType(frozenset().union(*(d.names for d in found if d)))
    return DType(frozenset())


def names(dtype: DType | None) -> Dtypes | None:
    return dtype.names if dtype is not None and dtype.names else None


KEPT = frozenset(
    """
    differentiable gradient weights learnt positions float16 bfloat16 scaled hand_scaled probabilities loss counts
    penalty uniform cumulated schedule weights:bfloat16 weights:float16 unscaled ratio inverse
    was:bfloat16 was:float16
    """.split()
)
"""Marks that pass from operands to results."""
