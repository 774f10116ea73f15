"""What tensor operations do to dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import LOW, Kind, Role
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
from precaudit.static.overlays.torch import casts, factories, mistakes, operands, opnames, optimizers
from precaudit.static.overlays.torch.autocast import table_for

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

BEFORE_THE_LOSS = frozenset({"mean", "sum", "softmax", "log_softmax", "logsumexp"})
"""What a factor on many numbers goes into was no loss scale, which multiplies one."""


def apply(
    torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any, receiver: Value | None = None
) -> Value:
    """The result of `torch.<name>(*args)` or `args[0].<name>(*args[1:])`."""
    args = [operands.as_tensor(torch, a) for a in args]
    flat: list[Value] = []
    for arg in (*args, *kwargs.values()):
        flat.extend(operands.as_tensor(torch, i) for i in arg.items) if isinstance(arg, Seq) else flat.append(arg)
    tensors = [a for a in flat if isinstance(a, Tensor)]
    spot = torch.spot(node)
    if name in opnames.CASTS and receiver is not None:
        return casts.cast(torch, args[0], DType(frozenset({opnames.CASTS[name]}), spot), node)
    if name == "to" or name == "type":
        return casts.to(torch, args, kwargs, node)
    if name in ("type_as", "to_other"):
        other = args[1] if len(args) > 1 else None
        target = other.dtype if isinstance(other, Tensor) else None
        return casts.cast(
            torch, args[0], DType(target or frozenset(), other.origin if isinstance(other, Tensor) else None), node
        )
    if name in opnames.FACTORIES or name in opnames.LIKE or name in opnames.NEW:
        return factories.create(torch, name, args, kwargs, node)
    if name in opnames.PREDICATES:
        return Tensor(frozenset({"bool"}), spot, name)
    if name in opnames.NUMBERS:
        return Number()
    if name in opnames.INTEGER_RESULTS:
        mistakes.sampled(torch, name, args, node)
        return Tensor(frozenset({"int64"}), spot, name)
    if not tensors:
        return unknown(*(operands.marks_of(flat) & operands.KEPT))
    args = args or list(tensors)
    if name in opnames.VIEWS:
        return _view(torch, name, args, kwargs, node)
    if name in opnames.SPLITS:
        return seq([_derive(tensors[0], spot, name)], "tuple", open=True)
    if name in opnames.PAIRS or (name in ("max", "min") and (len(args) > 1 or "dim" in kwargs)):
        if len(args) > 1 and isinstance(args[1], Tensor) and name in ("max", "min"):
            return _pointwise(torch, "Max", args[:2], node, name)
        mistakes.consumes_softmax(torch, name, tensors[0], node)
        return seq([_derive(tensors[0], spot, name), Tensor(frozenset({"int64"}), spot, name)], "pair")
    if name in ("max", "min"):
        return replace(_derive(tensors[0], spot, name), zero_dim=True)
    if name in ("masked_fill", "masked_fill_"):
        return _masked_fill(torch, args, kwargs, node)
    if name in opnames.LOSSES:
        return _loss(torch, name, args, kwargs, node)
    if name in opnames.MATMULS:
        return _matmul(torch, name, tensors, flat, node)
    if name == "where" and len(args) == 3:
        condition = args[0] if receiver is None else args[1]
        flat = [value for value in flat if value is not condition]
    if name in opnames.POINTWISE:
        return _pointwise(torch, opnames.POINTWISE[name], flat if name != "lerp" else flat[:2], node, name)
    if name in opnames.SAME:
        return _same(torch, name, args, kwargs, node)
    return unknown(*(operands.marks_of(flat) & operands.KEPT))


def _derive(tensor: Tensor, spot: Spot, op: str) -> Tensor:
    return replace(tensor, spot=spot, op=op, marks=tensor.marks & operands.KEPT)


def result_of(torch: Torch, name: str, dtype: Dtypes | None, tensors: list[Value], node: Any, **more: Any) -> Tensor:
    """A computed tensor: marks from its operands, and float16 or bfloat16 where its gradient will be so."""
    marks = operands.marks_of(tensors) & operands.KEPT
    if name not in opnames.LINEAR or not all(
        isinstance(t, Tensor) and t.marks & {"weights", "created"} for t in tensors
    ):
        marks -= {"weights", "learnt"}
    if not torch.grad():
        marks -= {"differentiable", "float16", "bfloat16"}
    if "differentiable" in marks and dtype is not None:
        if len(dtype) == 1:
            marks |= dtype & {"float16", "bfloat16"}
        elif dtype == {"float32", "bfloat16"}:
            # Under a region that may be switched off: nothing of it is float16 either way.
            marks |= {"bfloat16"}
    spot = torch.spot(node)
    low_at = next((t.low_at for t in tensors if isinstance(t, Tensor) and t.low_at), None)
    if is_low(dtype) and marks & {"positions", "schedule"} and low_at is None:
        low_at = spot
    return Tensor(dtype, spot, name, marks, low_at=low_at, loops=torch.loops(), **more)


def autocast_dtype(torch: Torch, name: str, dtype: Dtypes | None) -> tuple[Dtypes | None, bool]:
    """The dtype an operation runs in, given what its operands promote to, and whether autocast decided it."""
    region = torch.autocast()
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


def _matmul(torch: Torch, name: str, tensors: list[Tensor], flat: list[Value], node: Any) -> Value:
    opaque = [v for v in flat if isinstance(v, Opaque)]
    dtype = promote(tensors) if not opaque else None
    weights = [t for t in tensors if t.op == "parameter"]
    if dtype is None and name in ("linear", "conv1d", "conv2d", "conv3d") and weights:
        dtype = weights[0].dtype
    decided, by_autocast = autocast_dtype(torch, name, dtype)
    if by_autocast and weights:
        optimizers.used_in_region(torch, torch.autocast())
    return result_of(torch, name, decided, [*tensors, *opaque], node)


def _pointwise(torch: Torch, op: str, values: list[Value], node: Any, name: str) -> Value:
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
    for value in plain:
        mistakes.constant_overflows(torch, dtype, value, node, "Add" if name == "where" else op)
    result = result_of(torch, name, dtype, [*tensors, *opaque], node)
    changes: dict[str, Any] = {"zero_dim": all(t.zero_dim for t in tensors) and not opaque}
    if name in opnames.LINEAR:
        kept = (t.parts or ((t,) if t.marks & opnames.PARTS else ()) for t in tensors)
        changes["parts"] = tuple(part for parts in kept for part in parts)[:4]
    if result.low:
        for tensor in tensors:
            if op == "Divide" and tensor is tensors[-1] and len(tensors) > 1:
                mistakes.consumes_vanishing(torch, tensor, node, "div")
                continue
            if op in ("Multiply", "Divide", "Add", "Subtract"):
                changes["square"] = changes.get("square") or (
                    tensor.square if op != "Multiply" or len(tensors) == 1 else None
                )
            changes["low_softmax"] = changes.get("low_softmax") or tensor.low_softmax
        wide = next((t for t in tensors if t.zero_dim and "asked_float32" in t.marks), None)
        if wide is not None and not changes["zero_dim"]:
            torch.facts.add(
                Kind.OP,
                torch.spot(node),
                result.dtype,
                None,
                ("it was made float32 here", wide.spot),
                op="no-promotion",
            )
        if op == "Add" and len(tensors) == 1:
            changes["tiny"] = mistakes.vanishing_constant(torch, result.dtype, plain, node)
            if tensors[0].op == "exp" and any(float_constant(v) == 1.0 for v in plain):
                changes["unstable"] = "log1p-exp"
        if op == "Multiply" and len(tensors) == 2 and tensors[0].spot is tensors[1].spot is not None:
            changes["square"] = torch.spot(node)
    marks = _homogeneity(op, tensors, result.marks)
    if any(isinstance(value, Number) and value.from_scale for value in plain):
        marks = (marks - {"penalty"}) | ({"unscaled"} if "gradient" in marks else frozenset())
    if op in ("Multiply", "Divide") and ("differentiable" in marks or "loss" in marks or marks & {"float16"}):
        marks |= _hand_scaling(plain, opaque, op)
    elif op == "Multiply" and opaque:
        marks |= {"hand_scaled"}
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


def binary(torch: Torch, op: str, left: Value, right: Value, node: Any) -> Value:
    """A Python operator on values of which at least one may be a tensor."""
    left, right = operands.as_tensor(torch, left), operands.as_tensor(torch, right)
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
        return apply(torch, "matmul", [left, right], {}, node)
    if op == "Power":
        return apply(torch, "pow", [left, right], {}, node)
    return _pointwise(torch, op, [left, right], node, op)


def _same(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0] if isinstance(args[0], Tensor) else next((a for a in args if isinstance(a, Tensor)), None)
    if tensor is None:
        return unknown(*(operands.marks_of(args) & operands.KEPT))
    dtype = tensor.dtype
    if name in ("pow",) and len(args) > 1 and isinstance(args[0], (Const, Number)):
        # A number to the power of a tensor: the tensor's dtype, or float32 for integers.
        dtype = dtype if is_float(dtype) or dtype is None else frozenset({"float32"})
    wanted = operands.dtype_argument(torch, kwargs.get("dtype") or _third_dtype(args))
    integral = dtype is not None and not is_float(dtype)
    if integral and name not in ("sum", "cumsum", "abs", "neg", "clamp", "clip", "prod", "pad", "sign", "amax", "amin"):
        dtype = frozenset({"float32"})
    decided, by_autocast = (dtype, False) if integral else autocast_dtype(torch, name, dtype)
    if by_autocast and decided == frozenset({"float32"}):
        mistakes.consumes_recast(torch, tensor)
    if wanted is not None and name not in ("normalize",):
        decided = operands.names(wanted)
        by_autocast = True
    before = torch.spot(node)
    result = result_of(torch, name, decided, [tensor], node)
    changes: dict[str, Any] = {}
    reduces_all = name in opnames.REDUCTIONS and len(args) == 1 and not ({"dim", "axis"} & set(kwargs))
    if reduces_all or tensor.zero_dim:
        changes["zero_dim"] = True
    marks = result.marks
    if name in BEFORE_THE_LOSS and not tensor.zero_dim:
        marks -= {"hand_scaled"}
    if name == "sign" and "gradient" in marks:
        marks |= {"ratio"}
    if name in ("sigmoid", "softmax"):
        marks |= {"probabilities"}
    elif name not in ("mean", "sum", "dropout", "clamp", "squeeze"):
        marks -= {"probabilities"}
    if result.low:
        if torch.disabled_region() is not None and name in opnames.FLOAT32_MATH and wanted is None:
            mistakes.low_in_disabled_region(torch, tensor, node)
        if name == "softmax":
            changes["low_softmax"] = before
        elif name in ("sum", "mean", "log", "clamp", "clip", "sqrt"):
            changes["low_softmax"] = tensor.low_softmax
        if name in ("clamp", "clip", "clamp_min"):
            floor = args[1] if len(args) > 1 else kwargs.get("min", NONE)
            changes["tiny"] = mistakes.vanishing_constant(torch, decided, [floor], node)
        elif name == "sqrt":
            changes["tiny"] = tensor.tiny
        if name in ("square",) or (name == "pow" and len(args) > 1 and float_constant(args[1]) == 2.0):
            changes["square"] = before
        elif name == "pow" and len(args) > 1 and float_constant(args[1]) in (-0.5, 0.5):
            mistakes.low_normalization(torch, tensor, node)
            changes["square"] = None
        elif name in ("mean", "sum"):
            changes["square"] = tensor.square
        elif name == "var":
            changes["square"] = before
        elif name in ("rsqrt", "sqrt"):
            mistakes.low_normalization(torch, tensor, node)
        if name in ("sum", "norm", "vector_norm") and "gradient" in marks:
            mistakes.low_gradient_norm(torch, name, tensor, result, node)
        if name in ("log_softmax", "logsumexp") and "differentiable" in marks and not tensor.zero_dim:
            torch.facts.add(
                Kind.HOLDS,
                before,
                decided,
                Role.SOFTMAX,
                ("its input became low here", tensor.spot),
                name,
                feeds="loss",
            )
        if name == "exp" and tensor.op not in ("Subtract", "sub", "neg"):
            changes["unstable"] = "exp"
        elif name == "sum" and tensor.op == "exp" and tensor.unstable:
            changes["unstable"] = "log-sum-exp"
        elif name == "log" and tensor.unstable not in ("", "exp"):
            torch.facts.add(Kind.OP, before, decided, op=tensor.unstable)
        if name == "log" and tensor.op == "sigmoid" and "differentiable" in marks:
            torch.facts.add(Kind.OP, before, decided, op="log-sigmoid-by-hand")
        if name == "log" and "uniform" in tensor.marks:
            torch.facts.add(Kind.OP, before, decided, op="low-precision-sampling")
        if name in ("log", "log2", "log10", "rsqrt", "reciprocal"):
            mistakes.consumes_vanishing(torch, tensor, node, "rsqrt" if name == "rsqrt" else "log")
        if "schedule" in marks and name in ("cumprod", "sqrt", "rsqrt", "pow"):
            mistakes.low_schedule(torch, tensor, result, node)
        if name in ("cumsum", "cumprod"):
            mistakes.low_running_count(torch, tensor, result, node)
            if "counts" in marks or "positions" in marks:
                marks |= {"positions"}
                changes["low_at"] = before
            marks |= {"cumulated"}
    if name in ("log", "log_softmax"):
        mistakes.consumes_softmax(torch, "log", tensor, node)
    if name in ("sin", "cos") and tensor.marks & {"positions", "schedule"} and not by_autocast:
        mistakes.low_positions(torch, tensor, node)
    if name == "cumsum" and (integral or "counts" in tensor.marks):
        marks |= {"positions"}
    if not is_low(decided):
        changes["square"] = None
        changes["low_softmax"] = None
    return replace(result, marks=marks, **changes)


def _third_dtype(args: list[Value]) -> Value | None:
    return next((a for a in args[1:] if isinstance(a, DType)), None)


def _loss(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    values = [
        *args,
        *(operands.as_tensor(torch, v) for k, v in kwargs.items() if k in ("input", "target", "logits", "labels")),
    ]
    first = values[0] if values else unknown()
    if "input" in kwargs:
        first = operands.as_tensor(torch, kwargs["input"])
    tensors = [v for v in values[:2] if isinstance(v, Tensor)]
    labelled = name in ("cross_entropy", "nll_loss")
    # Their target is labels, or has the input's dtype: one of which nothing is known decides nothing.
    floats = [t for t in tensors if (t.dtype is None and not (labelled and t is not first)) or is_float(t.dtype)]
    region = torch.autocast()
    if not isinstance(first, Tensor):
        return replace_marks(unknown(*(operands.marks_of(values) & operands.KEPT - {"hand_scaled"}), "loss"), torch)
    opaque = any(isinstance(v, Opaque) for v in values[:2]) and not labelled
    dtype = promote(floats) if floats and not opaque else first.dtype if not opaque else None
    covered = region is not None and region.spot is not None and region.enabled is not False
    if name == "binary_cross_entropy" and covered:
        torch.facts.add(
            Kind.OP, torch.loss_built or torch.spot(node), dtype or "", None, None, "", op=name, under_autocast=True
        )
    if name == "binary_cross_entropy" and first.low and "probabilities" in first.marks:
        torch.facts.add(
            Kind.OP,
            torch.loss_built or torch.spot(node),
            first.dtype,
            None,
            ("the probabilities were computed here", first.spot),
            "",
            op="bce-on-probabilities",
        )
    decided, by_autocast = autocast_dtype(torch, name, dtype)
    if name == "binary_cross_entropy" and covered:
        decided = None  # PyTorch raises
    if by_autocast and decided == frozenset({"float32"}):
        mistakes.consumes_recast(torch, first)
    if is_low(decided):
        if torch.disabled_region() is not None:
            mistakes.low_in_disabled_region(torch, first, node)
        if name == "cross_entropy" and torch.grad() and "differentiable" in first.marks:
            torch.facts.add(
                Kind.HOLDS,
                torch.spot(node),
                decided,
                Role.SOFTMAX,
                ("its input became low here", first.spot),
                f"{name} is computed on them",
                feeds="loss",
            )
    mistakes.consumes_softmax(torch, "loss", first, node)
    reduction = constant(kwargs.get("reduction"))
    result = result_of(torch, name, decided, [v for v in values if isinstance(v, (Tensor, Opaque))], node)
    low_at = result.spot if result.low else None
    return replace(result, marks=result.marks - {"hand_scaled"} | {"loss"}, zero_dim=reduction != "none", low_at=low_at)


def replace_marks(value: Opaque, torch: Torch) -> Opaque:
    return value if torch.grad() else Opaque(marks=value.marks - {"float16", "bfloat16", "differentiable"})


def _masked_fill(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0]
    fill = kwargs.get("value") or (args[2] if len(args) > 2 else NONE)
    if not isinstance(tensor, Tensor):
        return unknown(*(operands.marks_of([tensor]) & operands.KEPT))
    mistakes.constant_overflows(torch, tensor.dtype, fill, node, "Add")
    return _derive(tensor, torch.spot(node), "masked_fill")


def _view(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0] if isinstance(args[0], Tensor) else None
    if tensor is None:
        return unknown(*(operands.marks_of(args) & operands.KEPT))
    if name in ("detach", "detach_"):
        return replace(tensor, marks=tensor.marks - {"differentiable", "float16", "bfloat16"})
    if name in ("clone",):
        return replace(tensor, marks=tensor.marks | {"created"}, spot=torch.spot(node), loops=torch.loops(), op="clone")
    if name in ("retain_grad",):
        return NONE
    zero = tensor.zero_dim and name in ("clone", "detach", "contiguous", "cpu", "cuda")
    return replace(tensor, zero_dim=zero)
