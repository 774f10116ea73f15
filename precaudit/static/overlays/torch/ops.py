"""What tensor operations do to dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.model.vocabulary import LOW
from precaudit.static.language.values import (
    NONE,
    Const,
    DType,
    Dtypes,
    Number,
    Opaque,
    Seq,
    Spot,
    Tensor,
    Value,
    constant,
    float_constant,
    is_float,
    is_low,
    join_dtypes,
    promote,
    seq,
    unknown,
)
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import casts, factories, operands, opnames, optimizers
from precaudit.static.overlays.torch.autocast import table_for

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

BEFORE_THE_LOSS = frozenset({"mean", "sum", "softmax", "log_softmax", "logsumexp"})
"""What a factor on many numbers goes into was no loss scale, which multiplies one."""


def apply(
    run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any, receiver: Value | None = None
) -> Value:
    """The result of `torch.<name>(*args)` or `args[0].<name>(*args[1:])`, told to the detectors."""
    args = [operands.as_tensor(run, a) for a in args]
    flat: list[Value] = []
    for arg in (*args, *kwargs.values()):
        flat.extend(operands.as_tensor(run, i) for i in arg.items) if isinstance(arg, Seq) else flat.append(arg)
    if name == "where" and len(args) == 3:
        condition = args[0] if receiver is None else args[1]
        flat = [value for value in flat if value is not condition]
    result = _result(run, name, args, kwargs, flat, node)
    if name in run.bus.asked:
        run.bus.tell(Op(run, name, args or flat, kwargs, flat, result, node))
    return result


def _result(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], flat: list[Value], node: Any) -> Value:
    """What the group gives that an operation belongs to; who knows what for any other, and where no tensor is known."""
    rule = _RULES.get(name)
    tensors = [a for a in flat if isinstance(a, Tensor)]
    if rule in _OF_ANYTHING:
        return rule(Call(run, name, args, kwargs, flat, tensors, node))
    if rule is None or not tensors:
        return unknown(*(operands.marks_of(flat) & operands.KEPT))
    return rule(Call(run, name, args or list(tensors), kwargs, flat, tensors, node))


class Call(NamedTuple):
    """An operation, before anything is known of its result."""

    run: Run
    name: str
    args: list[Value]
    kwargs: dict[str, Value]
    flat: list[Value]
    """All that it was given, with the items of lists among them."""
    tensors: list[Tensor]
    node: Any

    @property
    def spot(self) -> Spot:
        return self.run.spot(self.node)

    def derived(self, dtype: str = "") -> Tensor:
        """The first tensor as this operation leaves it, or one of another dtype."""
        if dtype:
            return Tensor(frozenset({dtype}), self.spot, self.name)
        return _derive(self.tensors[0], self.spot, self.name)


def _cast_by_name(call: Call) -> Value:
    target = DType(frozenset({opnames.CASTS[call.name]}), call.spot)
    return casts.cast(call.run, call.args[0], target, call.node) if call.args else unknown()


def _cast_as(call: Call) -> Value:
    other = call.args[1] if len(call.args) > 1 else None
    target = DType(other.dtype or frozenset(), other.origin) if isinstance(other, Tensor) else DType(frozenset())
    return casts.cast(call.run, call.args[0], target, call.node)


def _two_statistics(call: Call) -> Value:
    deviation = _same(call.run, call.name.removesuffix("_mean"), call.args, call.kwargs, call.node)
    return seq([deviation, _same(call.run, "mean", call.args[:1], call.kwargs, call.node)], "tuple")


def _extreme(call: Call) -> Value:
    """`max`: of all, along a dimension with the indices, or of two tensors."""
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return _pointwise(call.run, "Max", call.args[:2], call.node, call.name)
    if len(call.args) > 1 or "dim" in call.kwargs:
        return _pair(call)
    return replace(call.derived(), zero_dim=True)


def _pair(call: Call) -> Value:
    return seq([call.derived(), call.derived("int64")], "pair")


def _elementwise(call: Call) -> Value:
    values = call.flat if call.name != "lerp" else call.flat[:2]
    return _pointwise(call.run, opnames.POINTWISE[call.name], values, call.node, call.name)


Rule = Callable[[Call], Value]
_OF_ANYTHING: dict[Rule, Iterable[str]] = {
    _cast_by_name: opnames.CASTS,
    lambda call: casts.to(call.run, call.args, call.kwargs, call.node): ("to", "type"),
    _cast_as: ("type_as", "to_other"),
    lambda call: factories.create(call.run, call.name, call.args, call.kwargs, call.node): (
        opnames.FACTORIES | opnames.LIKE | opnames.NEW
    ),
    lambda call: call.derived("bool"): opnames.PREDICATES,
    lambda call: Number(): opnames.NUMBERS,
    lambda call: call.derived("int64"): opnames.INTEGER_RESULTS,
}
"""What is known of a result even where nothing is known of what went in."""
_OF_TENSORS: dict[Rule, Iterable[str]] = {
    lambda call: _view(call.run, call.name, call.args, call.kwargs, call.node): opnames.VIEWS,
    _two_statistics: opnames.TWO_STATISTICS,
    lambda call: seq([replace(tensor, spot=call.spot) for tensor in call.tensors], "tuple"): ("meshgrid",),
    lambda call: seq([call.derived()], "tuple", open=True): opnames.SPLITS,
    _pair: opnames.PAIRS,
    _extreme: ("max", "min"),
    lambda call: _masked_fill(call.run, call.args, call.kwargs, call.node): ("masked_fill", "masked_fill_"),
    lambda call: _loss(call.run, call.name, call.args, call.kwargs, call.node): opnames.LOSSES,
    lambda call: _matmul(call.run, call.name, call.tensors, call.flat, call.node): opnames.MATMULS,
    _elementwise: opnames.POINTWISE,
    lambda call: _same(call.run, call.name, call.args, call.kwargs, call.node): opnames.SAME,
}
_GROUPS = [*_OF_ANYTHING.items(), *_OF_TENSORS.items()]
_RULES: dict[str, Rule] = {name: rule for rule, names in reversed(_GROUPS) for name in names}
"""Operation -> its rule; one that stands in two groups has that of the first."""


def _derive(tensor: Tensor, spot: Spot, op: str) -> Tensor:
    return replace(tensor, spot=spot, op=op, marks=tensor.marks & operands.KEPT)


def result_of(run: Run, name: str, dtype: Dtypes | None, tensors: list[Value], node: Any, **more: Any) -> Tensor:
    """A computed tensor: marks from its operands, and float16 or bfloat16 where its gradient will be so."""
    marks = operands.marks_of(tensors) & operands.KEPT
    if name not in opnames.LINEAR or not all(
        isinstance(t, Tensor) and t.marks & {"weights", "created"} for t in tensors
    ):
        marks -= {"weights", "learnt"}
    if not run.grad():
        marks -= {"differentiable", "float16", "bfloat16"}
    if "differentiable" in marks and dtype is not None:
        if len(dtype) == 1:
            marks |= dtype & {"float16", "bfloat16"}
        elif dtype == {"float32", "bfloat16"}:
            # Under a region that may be switched off: nothing of it is float16 either way.
            marks |= {"bfloat16"}
    spot = run.spot(node)
    low_at = next((t.low_at for t in tensors if isinstance(t, Tensor) and t.low_at), None)
    if is_low(dtype) and marks & {"positions", "schedule"} and low_at is None:
        low_at = spot
    return Tensor(dtype, spot, name, marks, low_at=low_at, loops=run.loops(), **more)


def autocast_dtype(run: Run, name: str, dtype: Dtypes | None) -> tuple[Dtypes | None, bool]:
    """The dtype an operation runs in, given what its operands promote to, and whether autocast decided it."""
    region = run.autocast()
    if region is None or region.enabled is False:
        return dtype, False
    table = table_for(region.devices)
    name = opnames.COMPOSED.get(name, name)
    if name in table.lower:
        decided: Dtypes | None = region.dtype
        if dtype is not None and not is_float(dtype):
            decided = dtype
        if dtype is not None and dtype == frozenset({"float64"}):
            decided = dtype
    elif name in table.float32:
        decided = frozenset({"float32"}) if dtype is None or is_low(dtype) or dtype & LOW else dtype
    else:
        return dtype, False
    if region.enabled is None:
        decided = join_dtypes(dtype, decided)
    return decided, True


def _matmul(run: Run, name: str, tensors: list[Tensor], flat: list[Value], node: Any) -> Value:
    opaque = [v for v in flat if isinstance(v, Opaque)]
    dtype = promote(tensors) if not opaque else None
    weights = [t for t in tensors if t.op == "parameter"]
    if dtype is None and name in ("linear", "conv1d", "conv2d", "conv3d") and weights:
        dtype = weights[0].dtype
    decided, by_autocast = autocast_dtype(run, name, dtype)
    if by_autocast and weights:
        optimizers.used_in_region(run, run.autocast())
    return result_of(run, name, decided, [*tensors, *opaque], node)


def _pointwise(run: Run, op: str, values: list[Value], node: Any, name: str) -> Value:
    tensors = [v for v in values if isinstance(v, Tensor)]
    opaque = [v for v in values if isinstance(v, Opaque)]
    plain = [v for v in values if not isinstance(v, (Tensor, Opaque))]
    if not tensors:
        return unknown(*(operands.marks_of(values) & operands.KEPT))
    dtype = promote(tensors) if not opaque else None
    if op == "Divide" and dtype is not None and not is_float(dtype):
        dtype = frozenset({"float32"})
    if dtype is not None and not is_float(dtype) and any(isinstance(constant(v), float) for v in plain):
        dtype = frozenset({"float32"})
    result = result_of(run, name, dtype, [*tensors, *opaque], node)
    changes: dict[str, Any] = {"zero_dim": all(t.zero_dim for t in tensors) and not opaque}
    if name in opnames.LINEAR:
        kept = (t.parts or ((t,) if t.marks & opnames.PARTS else ()) for t in tensors)
        changes["parts"] = tuple(part for parts in kept for part in parts)[:4]
    marks = _homogeneity(op, tensors, result.marks)
    if any(isinstance(value, Number) and value.from_scale for value in plain):
        marks = (marks - {"penalty"}) | ({"unscaled"} if "gradient" in marks else frozenset())
    if op in ("Multiply", "Divide") and ("differentiable" in marks or "loss" in marks or marks & {"float16"}):
        marks |= _hand_scaling(plain, opaque, op)
    elif op == "Multiply" and opaque:
        marks |= {"hand_scaled"}
    elif op in ("Add", "Subtract") and _weighted(tensors):
        marks -= {"hand_scaled"}
    return replace(result, marks=marks, **changes)


def _homogeneity(op: str, tensors: list[Tensor], marks: frozenset[str]) -> frozenset[str]:
    """How a result grows with the gradients in it: as they do, not at all ("ratio"), or inversely ("inverse")."""
    if "gradient" not in marks or op not in ("Multiply", "Divide"):
        return marks
    degrees = [0 if "ratio" in t.marks else -1 if "inverse" in t.marks else int("gradient" in t.marks) for t in tensors]
    degree = degrees[0] - sum(degrees[1:]) if op == "Divide" and len(tensors) > 1 else sum(degrees)
    return (marks - {"ratio", "inverse"}) | ({"ratio"} if degree == 0 else {"inverse"} if degree < 0 else frozenset())


def _hand_scaling(plain: list[Value], opaque: list[Opaque], op: str) -> frozenset[str]:
    """Whether a factor may be a loss scale: a constant of 8 or more, a number that is not known, an unknown object."""
    for value in plain:
        number = float_constant(value)
        if op == "Multiply" and (number is None or abs(number) >= 8):
            return frozenset({"hand_scaled"})
        if op == "Divide" and number is not None and 0 < abs(number) <= 0.125:
            return frozenset({"hand_scaled"})
    return frozenset({"hand_scaled"}) if opaque and op == "Multiply" else frozenset()


def _weighted(terms: list[Tensor]) -> bool:
    """Whether a factor in this sum weights a term of it: a loss scale multiplies all of them."""
    return any("hand_scaled" not in t.marks and t.marks & {"differentiable", "loss"} for t in terms)


def binary(run: Run, op: str, left: Value, right: Value, node: Any) -> Value:
    """A Python operator on values of which at least one may be a tensor."""
    left, right = operands.as_tensor(run, left), operands.as_tensor(run, right)
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        marks = operands.marks_of([left, right]) & operands.KEPT
        if op in ("Multiply",) and (marks & {"float16", "differentiable", "loss"}):
            both = [v for v in (left, right) if isinstance(v, (Number, Const))]
            others = [v for v in (left, right) if isinstance(v, Opaque) and not v.marks]
            marks |= _hand_scaling(both, others, op)  # type: ignore[arg-type]
        numeric = all(
            isinstance(v, Number) or (isinstance(v, Const) and isinstance(v.value, (int, float))) for v in (left, right)
        )
        if numeric:
            return Number(any(isinstance(v, Number) and v.from_scale for v in (left, right)))
        return unknown(*marks)
    if op == "MatrixMultiply":
        return apply(run, "matmul", [left, right], {}, node)
    if op == "Power":
        return apply(run, "pow", [left, right], {}, node)
    result = _pointwise(run, op, [left, right], node, op)
    name = opnames.OPERATORS.get(op, op)
    if name in run.bus.asked:
        run.bus.tell(Op(run, name, [left, right], {}, [left, right], result, node))
    return result


def _same(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """An operation whose result has the dtype of its first tensor, unless autocast or the caller says otherwise."""
    tensor = args[0] if isinstance(args[0], Tensor) else next((a for a in args if isinstance(a, Tensor)), None)
    if tensor is None:
        return unknown(*(operands.marks_of(args) & operands.KEPT))
    dtype = tensor.dtype
    wanted = operands.dtype_argument(run, kwargs.get("dtype") or _third_dtype(args))
    integral = dtype is not None and not is_float(dtype)
    if integral and name not in opnames.OF_INTEGERS:
        dtype = frozenset({"float32"})
    if wanted is not None and name != "normalize":
        dtype = operands.names(wanted)
    elif not integral:
        dtype, _ = autocast_dtype(run, name, dtype)
    result = result_of(run, name, dtype, [tensor], node)
    reduces_all = name in opnames.REDUCTIONS and len(args) == 1 and not ({"dim", "axis"} & set(kwargs))
    low_at = result.spot if result.low and name in ("cumsum", "cumprod") and _counts(result) else result.low_at
    marks = _marks_after(name, tensor, result, integral)
    return replace(result, marks=marks, zero_dim=reduces_all or tensor.zero_dim, low_at=low_at)


def _marks_after(name: str, tensor: Tensor, result: Tensor, integral: bool) -> frozenset[str]:
    """The marks of a result: those that pass through every operation, but for what this one gives and takes."""
    marks = result.marks
    if name in BEFORE_THE_LOSS and not tensor.zero_dim:
        marks -= {"hand_scaled"}
    if name == "sign" and "gradient" in marks:
        marks |= {"ratio"}
    if name in ("sigmoid", "softmax"):
        marks |= {"probabilities"}
    elif name not in ("mean", "sum", "dropout", "clamp", "squeeze"):
        marks -= {"probabilities"}
    if result.low and name in ("cumsum", "cumprod"):
        marks |= {"cumulated", "positions"} if _counts(result) else {"cumulated"}
    if name == "cumsum" and (integral or "counts" in tensor.marks):
        marks |= {"positions"}
    return marks


def _counts(tensor: Tensor) -> bool:
    return bool(tensor.marks & {"counts", "positions"})


def _third_dtype(args: list[Value]) -> Value | None:
    return next((a for a in args[1:] if isinstance(a, DType)), None)


def _loss(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    values = [
        *args,
        *(operands.as_tensor(run, v) for k, v in kwargs.items() if k in ("input", "target", "logits", "labels")),
    ]
    first = values[0] if values else unknown()
    if "input" in kwargs:
        first = operands.as_tensor(run, kwargs["input"])
    tensors = [v for v in values[:2] if isinstance(v, Tensor)]
    labelled = name in ("cross_entropy", "nll_loss")
    # Their target is labels, or has the input's dtype: one of which nothing is known decides nothing.
    floats = [t for t in tensors if (t.dtype is None and not (labelled and t is not first)) or is_float(t.dtype)]
    region = run.autocast()
    if not isinstance(first, Tensor):
        return replace_marks(unknown(*(operands.marks_of(values) & operands.KEPT - {"hand_scaled"}), "loss"), run)
    opaque = any(isinstance(v, Opaque) for v in values[:2]) and not labelled
    dtype = promote(floats) if floats and not opaque else first.dtype if not opaque else None
    decided, _ = autocast_dtype(run, name, dtype)
    if (
        name == "binary_cross_entropy"
        and region is not None
        and region.spot is not None
        and region.enabled is not False
    ):
        decided = None  # PyTorch raises
    reduction = constant(kwargs.get("reduction"))
    result = result_of(run, name, decided, [v for v in values if isinstance(v, (Tensor, Opaque))], node)
    low_at = result.spot if result.low else None
    return replace(result, marks=result.marks - {"hand_scaled"} | {"loss"}, zero_dim=reduction != "none", low_at=low_at)


def replace_marks(value: Opaque, run: Run) -> Opaque:
    return value if run.grad() else Opaque(marks=value.marks - {"float16", "bfloat16", "differentiable"})


def _masked_fill(run: Run, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0]
    if not isinstance(tensor, Tensor):
        return unknown(*(operands.marks_of([tensor]) & operands.KEPT))
    return _derive(tensor, run.spot(node), "masked_fill")


def _view(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0] if isinstance(args[0], Tensor) else None
    if tensor is None:
        return unknown(*(operands.marks_of(args) & operands.KEPT))
    if name in ("detach", "detach_"):
        return replace(tensor, marks=tensor.marks - {"differentiable", "float16", "bfloat16"})
    if name in ("clone",):
        return replace(tensor, marks=tensor.marks | {"created"}, spot=run.spot(node), loops=run.loops(), op="clone")
    if name in ("retain_grad",):
        return NONE
    zero = tensor.zero_dim and name in ("clone", "detach", "contiguous", "cpu", "cuda")
    return replace(tensor, zero_dim=zero)
