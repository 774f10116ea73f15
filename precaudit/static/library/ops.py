"""What tensor operations do to dtypes, and the mistakes that a known dtype proves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import FLOATING, LOW, Kind, Role, rounds_to
from precaudit.static.language.values import (
    NONE,
    Choice,
    Const,
    Device,
    DType,
    Dtypes,
    Number,
    Opaque,
    Param,
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
from precaudit.static.library.autocast import table_for

if TYPE_CHECKING:
    from precaudit.static.library.torch_model import Torch

DTYPE_NAMES = {
    **{name: name for name in FLOATING},
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "uint8": "uint8",
    "bool": "bool",
    "float8_e4m3fnuz": "float8_e4m3fn",
}
"""torch.<name> -> dtype."""

CASTS = {"half": "float16", "bfloat16": "bfloat16", "float": "float32", "double": "float64"} | {
    "long": "int64",
    "int": "int32",
    "bool": "bool",
    "short": "int16",
    "char": "int8",
    "byte": "uint8",
}
"""Tensor methods that cast."""

VIEWS = frozenset(
    """
    view reshape permute transpose flatten unflatten squeeze unsqueeze contiguous expand expand_as view_as
    repeat t swapaxes swapdims movedim narrow select index_select gather take_along_dim roll flip cpu cuda
    pin_memory requires_grad_ clone triu tril diag diagonal broadcast_to repeat_interleave as_strided unfold
    rot90 masked_select wait xpu npu reshape_as T mT H moveaxis ravel alias detach detach_ index_copy fold
    sort msort retain_grad
    """.split()
)
SAME = frozenset(
    """
    relu relu_ gelu silu tanh sigmoid leaky_relu elu selu celu mish hardswish hardsigmoid relu6 dropout
    dropout1d dropout2d dropout3d alpha_dropout abs neg sign floor ceil round clamp clip clamp_min clamp_max
    sin cos sqrt square pad max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d glu erf log_sigmoid logsigmoid nan_to_num
    positive frac trunc diff cummax amax amin mean median var std softsign tanhshrink batch_norm instance_norm
    pixel_shuffle atan acos asin sinh cosh tan exp expm1 log log2 log10 log1p rsqrt reciprocal softplus sum
    nansum prod cumsum cumprod logcumsumexp logsumexp norm vector_norm softmax log_softmax softmin layer_norm
    rms_norm group_norm normalize interpolate upsample cosine_similarity pow cdist dist pdist renorm
    gumbel_softmax bernoulli threshold hardtanh
    """.split()
)
MATMULS = frozenset(
    """
    matmul mm bmm mv linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d einsum
    addmm baddbmm addbmm scaled_dot_product_attention outer dot vdot tensordot bilinear multi_dot chain_matmul
    inner
    """.split()
)
POINTWISE = {
    "add": "Add",
    "sub": "Subtract",
    "subtract": "Subtract",
    "mul": "Multiply",
    "multiply": "Multiply",
    "div": "Divide",
    "divide": "Divide",
    "true_divide": "Divide",
    "rsub": "Subtract",
    "maximum": "Max",
    "minimum": "Max",
    "fmod": "Modulo",
    "remainder": "Modulo",
    "addcmul": "Add",
    "addcdiv": "Add",
    "lerp": "Add",
    "where": "Max",
    "cat": "Max",
    "concat": "Max",
    "concatenate": "Max",
    "stack": "Max",
    "hstack": "Max",
    "vstack": "Max",
    "index_add": "Add",
    "scatter_add": "Add",
    "atan2": "Max",
}
LOSSES = frozenset(
    """
    cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy
    binary_cross_entropy_with_logits poisson_nll_loss cosine_embedding_loss hinge_embedding_loss
    margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss ctc_loss
    gaussian_nll_loss multilabel_soft_margin_loss
    """.split()
)
FACTORIES = frozenset(
    """
    zeros ones full empty rand randn tensor as_tensor arange linspace logspace eye scalar_tensor
    """.split()
)
LIKE = frozenset(["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"])
NEW = frozenset(["new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"])
PREDICATES = frozenset(
    """
    eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not isin equal isclose any all
    """.split()
)
INTEGER_RESULTS = frozenset(
    """
    argmax argmin argsort nonzero bincount searchsorted bucketize multinomial one_hot randint randperm histc
    """.split()
)
NUMBERS = frozenset(
    """
    item size numel dim ndimension stride element_size nelement tolist
    """.split()
)
PAIRS = frozenset({"topk", "sort", "cummax", "cummin", "kthvalue", "mode"})
SPLITS = frozenset({"chunk", "split", "unbind", "tensor_split", "split_with_sizes"})
REDUCTIONS = frozenset({"sum", "mean", "prod", "norm", "var", "std", "logsumexp", "amax", "amin", "nansum"}) | LOSSES
FLOAT32_MATH = frozenset(
    """
    exp log log1p log2 pow softmax log_softmax sum prod norm cumsum cumprod logsumexp rsqrt var
    """.split()
) | (LOSSES - {"binary_cross_entropy"})
"""What somebody who turns autocast off wants done in float32."""
LINEAR = frozenset({"Add", "Subtract", "Multiply", "Divide", "add", "sub", "mul", "div", "lerp", "stack", "cat"})
"""Operations after which a weight is still a weight, or an average of weights."""
PARTS = frozenset({"created", "weights", "gradient"})
"""What a tensor must be for a sum to remember that it is a part of it."""


def as_tensor(torch: Torch, value: Value) -> Value:
    """A parameter read as a tensor; a choice of tensors as one; anything else as it is."""
    if isinstance(value, Param):
        return _read_parameter(torch, value)
    if isinstance(value, Opaque) and value.dtype is not None:
        return Tensor(value.dtype, value.spot, "", value.marks)
    if isinstance(value, Choice):
        tensors = [as_tensor(torch, option) for option in value.options]
        known = [t for t in tensors if isinstance(t, Tensor)]
        if len(known) == len(tensors):
            dtype = known[0].dtype
            marks = known[0].marks
            for other in known[1:]:
                dtype, marks = join_dtypes(dtype, other.dtype), marks | other.marks
            return replace(known[0], dtype=dtype, marks=marks)
    return value


def _read_parameter(torch: Torch, value: Param) -> Tensor:
    marks = {"weights"}
    dtype = value.dtype
    if value.store.get("kind") != "buffer" and value.trainable is not False and torch.grad():
        marks.add("differentiable")
        if is_low(dtype) and dtype is not None and len(dtype) == 1:
            marks.add("weights:" + min(dtype))
    if value.store.get("positions"):
        marks.add("positions")
    spot = value.store.get("spot")
    low_at = spot if "positions" in marks and is_low(dtype) else None
    return Tensor(dtype, spot, "parameter", frozenset(marks), low_at=low_at, origin=value.store.get("origin"))


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


KEPT = frozenset(
    """
    differentiable gradient weights positions float16 bfloat16 scaled hand_scaled probabilities loss counts
    penalty uniform cumulated schedule weights:bfloat16 weights:float16
    """.split()
)
"""Marks that pass from operands to results."""


def dtype_argument(torch: Torch, value: Value | None) -> DType | None:
    """The dtype that a `dtype=` argument gives; a DType with no names where it is given and not known."""
    if value is None or (isinstance(value, Const) and value.value is None):
        return None
    if isinstance(value, DType):
        return value
    if isinstance(value, Const) and isinstance(value.value, str):
        name = DTYPE_NAMES.get(value.value.removeprefix("torch."))
        return DType(frozenset({name})) if name else DType(frozenset())
    if isinstance(value, Choice):
        found = [dtype_argument(torch, option) for option in value.options]
        if all(d is not None and d.names for d in found):
            return DType(frozenset().union(*(d.names for d in found if d)))
    return DType(frozenset())


def names(dtype: DType | None) -> Dtypes | None:
    return dtype.names if dtype is not None and dtype.names else None


def apply(
    torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any, receiver: Value | None = None
) -> Value:
    """The result of `torch.<name>(*args)` or `args[0].<name>(*args[1:])`."""
    args = [as_tensor(torch, a) for a in args]
    flat: list[Value] = []
    for arg in (*args, *kwargs.values()):
        flat.extend(as_tensor(torch, i) for i in arg.items) if isinstance(arg, Seq) else flat.append(arg)
    tensors = [a for a in flat if isinstance(a, Tensor)]
    spot = torch.spot(node)
    if name in CASTS and receiver is not None:
        return cast(torch, args[0], DType(frozenset({CASTS[name]}), spot), node)
    if name == "to" or name == "type":
        return to(torch, args, kwargs, node)
    if name in ("type_as", "to_other"):
        other = args[1] if len(args) > 1 else None
        target = other.dtype if isinstance(other, Tensor) else None
        return cast(
            torch, args[0], DType(target or frozenset(), other.origin if isinstance(other, Tensor) else None), node
        )
    if name in FACTORIES or name in LIKE or name in NEW:
        return create(torch, name, args, kwargs, node)
    if name in PREDICATES:
        return Tensor(frozenset({"bool"}), spot, name)
    if name in NUMBERS:
        return Number()
    if name in INTEGER_RESULTS:
        _sampled(torch, name, args, node)
        return Tensor(frozenset({"int64"}), spot, name)
    if not tensors:
        return unknown(*(marks_of(flat) & KEPT))
    if name in VIEWS:
        return _view(torch, name, args, kwargs, node)
    if name in SPLITS:
        return seq([_derive(tensors[0], spot, name)], "tuple", open=True)
    if name in PAIRS or (name in ("max", "min") and (len(args) > 1 or "dim" in kwargs)):
        if len(args) > 1 and isinstance(args[1], Tensor) and name in ("max", "min"):
            return _pointwise(torch, "Max", args[:2], node, name)
        _consumes_softmax(torch, name, tensors[0], node)
        return seq([_derive(tensors[0], spot, name), Tensor(frozenset({"int64"}), spot, name)], "tuple")
    if name in ("max", "min"):
        return replace(_derive(tensors[0], spot, name), zero_dim=True)
    if name in ("masked_fill", "masked_fill_"):
        return _masked_fill(torch, args, kwargs, node)
    if name in LOSSES:
        return _loss(torch, name, args, kwargs, node)
    if name in MATMULS:
        return _matmul(torch, name, tensors, flat, node)
    if name in POINTWISE:
        return _pointwise(torch, POINTWISE[name], flat if name != "lerp" else flat[:2], node, name)
    if name in SAME:
        return _same(torch, name, args, kwargs, node)
    return unknown(*(marks_of(flat) & KEPT))


def _derive(tensor: Tensor, spot: Spot, op: str) -> Tensor:
    return replace(tensor, spot=spot, op=op, marks=tensor.marks & KEPT)


def _result(torch: Torch, name: str, dtype: Dtypes | None, tensors: list[Value], node: Any, **more: Any) -> Tensor:
    """A computed tensor: marks from its operands, and float16 or bfloat16 where its gradient will be so."""
    marks = marks_of(tensors) & KEPT
    if name not in LINEAR or not all(isinstance(t, Tensor) and t.marks & {"weights", "created"} for t in tensors):
        marks -= {"weights"}
    if not torch.grad():
        marks -= {"differentiable", "float16", "bfloat16"}
    if "differentiable" in marks and dtype is not None and len(dtype) == 1:
        marks |= dtype & {"float16", "bfloat16"}
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
        torch.training.used_in_region(torch.autocast())
    return _result(torch, name, decided, [*tensors, *opaque], node)


def _pointwise(torch: Torch, op: str, values: list[Value], node: Any, name: str) -> Value:
    tensors = [v for v in values if isinstance(v, Tensor)]
    opaque = [v for v in values if isinstance(v, Opaque)]
    plain = [v for v in values if not isinstance(v, (Tensor, Opaque))]
    if not tensors:
        return unknown(*(marks_of(values) & KEPT))
    dtype = promote(tensors) if not opaque else None
    if op == "Divide" and dtype is not None and not is_float(dtype):
        dtype = frozenset({"float32"})
    if dtype is not None and not is_float(dtype) and any(isinstance(constant(v), float) for v in plain):
        dtype = frozenset({"float32"})
    for value in plain:
        _constant(torch, dtype, value, node, "Add" if name == "where" else op)
    result = _result(torch, name, dtype, [*tensors, *opaque], node)
    changes: dict[str, Any] = {"zero_dim": all(t.zero_dim for t in tensors) and not opaque}
    if name in LINEAR:
        changes["parts"] = tuple(p for t in tensors for p in (t.parts or ((t,) if t.marks & PARTS else ())))[:4]
    if result.low:
        for tensor in tensors:
            if op == "Divide" and tensor is tensors[-1] and len(tensors) > 1:
                _consumes_tiny(torch, tensor, node, "div")
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
            changes["tiny"] = _tiny(torch, result.dtype, plain, node)
            changes["one_plus_exp"] = tensors[0].op == "exp" and any(float_constant(v) == 1.0 for v in plain)
        if op == "Multiply" and len(tensors) == 2 and tensors[0].spot is tensors[1].spot is not None:
            changes["square"] = torch.spot(node)
    marks = result.marks
    if any(isinstance(value, Number) and value.from_scale for value in plain):
        marks -= {"penalty"}
    if op in ("Multiply", "Divide") and ("differentiable" in marks or "loss" in marks or marks & {"float16"}):
        marks |= _hand_scaling(plain, opaque, op)
    elif op == "Multiply" and opaque:
        marks |= {"hand_scaled"}
    return replace(result, marks=marks, **changes)


def _hand_scaling(plain: list[Value], opaque: list[Opaque], op: str) -> frozenset[str]:
    """Whether a factor may be a loss scale: a constant of 8 or more, a number that is not known, an unknown object."""
    for value in plain:
        number = float_constant(value)
        if op == "Multiply" and (number is None or abs(number) >= 8):
            return frozenset({"hand_scaled"})
        if op == "Divide" and number is not None and 0 < abs(number) <= 0.125:
            return frozenset({"hand_scaled"})
    return frozenset({"hand_scaled"}) if opaque and op == "Multiply" else frozenset()


def _constant(torch: Torch, dtype: Dtypes | None, value: Value, node: Any, op: str) -> None:
    number = float_constant(value)
    if number is None or dtype is None or not is_low(dtype) or op not in ("Add", "Subtract", "Multiply"):
        return
    if all(rounds_to(number, name) == "inf" for name in dtype):
        torch.facts.add(
            Kind.CONSTANT, torch.spot(node), dtype, None, None, f"{number:g} is not finite there", overflows=True
        )


def _tiny(torch: Torch, dtype: Dtypes | None, plain: list[Value], node: Any) -> tuple[float, Spot] | None:
    for value in plain:
        number = float_constant(value)
        if number and dtype and all(rounds_to(number, name) == "zero" for name in dtype):
            return number, torch.spot(node)
    return None


def _consumes_tiny(torch: Torch, tensor: Tensor, node: Any, feeds: str) -> None:
    if tensor.tiny is not None and tensor.low:
        number, spot = tensor.tiny
        torch.facts.add(
            Kind.CONSTANT,
            spot,
            tensor.dtype,
            None,
            None,
            f"{number:g} is 0 there",
            overflows=False,
            rounds_to="zero",
            feeds=feeds,
        )


def binary(torch: Torch, op: str, left: Value, right: Value, node: Any) -> Value:
    """A Python operator on values of which at least one may be a tensor."""
    left, right = as_tensor(torch, left), as_tensor(torch, right)
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        marks = marks_of([left, right]) & KEPT
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
    given = kwargs.get("input", kwargs.get("x"))
    if tensor is None and isinstance(given, Tensor):
        tensor = given
    if tensor is None:
        return unknown(*(marks_of(args) & KEPT))
    dtype = tensor.dtype
    if name in ("pow",) and len(args) > 1 and isinstance(args[0], (Const, Number)):
        # A number to the power of a tensor: the tensor's dtype, or float32 for integers.
        dtype = dtype if is_float(dtype) or dtype is None else frozenset({"float32"})
    wanted = dtype_argument(torch, kwargs.get("dtype") or _third_dtype(args))
    integral = dtype is not None and not is_float(dtype)
    if integral and name not in ("sum", "cumsum", "abs", "neg", "clamp", "clip", "prod", "pad", "sign", "amax", "amin"):
        dtype = frozenset({"float32"})
    decided, by_autocast = (dtype, False) if integral else autocast_dtype(torch, name, dtype)
    if wanted is not None and name not in ("normalize",):
        decided = names(wanted)
        by_autocast = True
    before = torch.spot(node)
    result = _result(torch, name, decided, [tensor], node)
    changes: dict[str, Any] = {}
    reduces_all = name in REDUCTIONS and len(args) == 1 and not ({"dim", "axis"} & set(kwargs))
    if reduces_all or tensor.zero_dim:
        changes["zero_dim"] = True
    marks = result.marks
    if name in ("sigmoid", "softmax"):
        marks |= {"probabilities"}
    elif name not in ("mean", "sum", "dropout", "clamp", "squeeze"):
        marks -= {"probabilities"}
    if result.low:
        if torch.disabled_region() is not None and name in FLOAT32_MATH and wanted is None:
            _low_in_disabled_region(torch, tensor, node)
        if name == "softmax":
            changes["low_softmax"] = before
        elif name in ("sum", "mean", "log", "clamp", "clip", "sqrt"):
            changes["low_softmax"] = tensor.low_softmax
        if name in ("square",) or (name == "pow" and len(args) > 1 and float_constant(args[1]) == 2.0):
            changes["square"] = before
        elif name == "pow" and len(args) > 1 and float_constant(args[1]) in (-0.5, 0.5):
            _normalises(torch, tensor, node)
            changes["square"] = None
        elif name in ("mean", "sum"):
            changes["square"] = tensor.square
        elif name == "var":
            changes["square"] = before
        elif name in ("rsqrt", "sqrt"):
            _normalises(torch, tensor, node)
        if name in ("sum", "norm", "vector_norm") and "gradient" in marks:
            _gradient_norm(torch, name, tensor, result, node)
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
        if name == "log" and tensor.one_plus_exp:
            torch.facts.add(Kind.OP, before, decided, op="log1p-exp")
        if name == "log" and "uniform" in tensor.marks:
            torch.facts.add(Kind.OP, before, decided, op="low-precision-sampling")
        if name in ("log", "log2", "log10", "rsqrt", "reciprocal"):
            _consumes_tiny(torch, tensor, node, "rsqrt" if name == "rsqrt" else "log")
        if "schedule" in marks and (name in ("cumprod", "sqrt", "rsqrt") or name == "pow"):
            _schedule(torch, tensor, result, node)
        if name in ("cumsum", "cumprod"):
            _cumulative(torch, tensor, result, node)
            if "counts" in marks or "positions" in marks:
                marks |= {"positions"}
                changes["low_at"] = before
            marks |= {"cumulated"}
    if name in ("log", "log_softmax"):
        _consumes_softmax(torch, "log", tensor, node)
    if name in ("sin", "cos") and "positions" in tensor.marks and tensor.low and not by_autocast:
        _positions(torch, tensor, node)
    if name == "cumsum" and (integral or "counts" in tensor.marks):
        marks |= {"positions"}
    if not is_low(decided):
        changes["square"] = None
        changes["low_softmax"] = None
    return replace(result, marks=marks, **changes)


def _third_dtype(args: list[Value]) -> Value | None:
    return next((a for a in args[1:] if isinstance(a, DType)), None)


def _positions(torch: Torch, tensor: Tensor, node: Any) -> None:
    torch.facts.add(
        Kind.HOLDS,
        tensor.low_at or torch.spot(node),
        tensor.dtype,
        Role.POSITIONS,
        ("they feed sin or cos here", torch.spot(node)),
        "positions and frequencies feed sin and cos",
        representable=False,
    )


def _schedule(torch: Torch, tensor: Tensor, result: Tensor, node: Any) -> None:
    """1 - beta of a noise schedule stands within 2**-8 of 1, where bfloat16 has two values."""
    torch.facts.add(
        Kind.HOLDS,
        tensor.low_at or torch.spot(node),
        result.dtype,
        Role.POSITIONS,
        ("it is multiplied up or its root is taken here", torch.spot(node)),
        "a noise schedule loses its steps near 0 and 1",
        representable=False,
    )


def _cumulative(torch: Torch, tensor: Tensor, result: Tensor, node: Any) -> None:
    if "counts" in tensor.marks:
        torch.facts.add(
            Kind.HOLDS,
            torch.spot(node),
            result.dtype,
            Role.POSITIONS,
            ("integers were cast here", tensor.spot),
            "a running count is exact only up to " + ("2048" if result.dtype == frozenset({"float16"}) else "256"),
            representable=False,
        )


def _gradient_norm(torch: Torch, name: str, tensor: Tensor, result: Tensor, node: Any) -> None:
    if name in ("norm", "vector_norm") or tensor.square is not None:
        torch.facts.add(
            Kind.HOLDS,
            torch.spot(node),
            result.dtype,
            Role.GRADIENT_NORM,
            ("squared here", tensor.square),
            "squares and their sum overflow past 65504" if result.dtype == frozenset({"float16"}) else "",
        )


def _normalises(torch: Torch, tensor: Tensor, node: Any) -> None:
    """A low square or variance that a root turns into a scale is a hand-written normalisation."""
    if tensor.square is None or not tensor.low or "gradient" in tensor.marks:
        return
    if tensor.op in ("square", "pow") or not torch.in_forward():
        return
    torch.facts.add(
        Kind.HOLDS,
        tensor.square,
        tensor.dtype,
        Role.NORM_COMPUTATION,
        ("its root is taken here", torch.spot(node)),
        "",
        hand_written=True,
    )


def _consumes_softmax(torch: Torch, name: str, tensor: Tensor, node: Any) -> None:
    if tensor.low_softmax is None or not tensor.low:
        return
    feeds = {"topk": "topk", "multinomial": "multinomial", "log": "log", "loss": "loss"}.get(name)
    if feeds is not None and ("differentiable" in tensor.marks or feeds == "loss"):
        torch.facts.add(
            Kind.HOLDS,
            tensor.low_softmax,
            tensor.dtype,
            Role.SOFTMAX,
            (f"it feeds {feeds} here", torch.spot(node)),
            "",
            feeds=feeds,
        )


def _sampled(torch: Torch, name: str, args: list[Value], node: Any) -> None:
    if name == "multinomial" and args and isinstance(args[0], Tensor):
        _consumes_softmax(torch, "multinomial", args[0], node)


def _low_in_disabled_region(torch: Torch, tensor: Tensor, node: Any) -> None:
    region = torch.disabled_region()
    if region is None or region.spot is None or not tensor.low or not torch.outside_region(tensor, region):
        return
    torch.facts.add(
        Kind.AUTOCAST,
        region.spot,
        tensor.dtype,
        None,
        ("low precision is used here", torch.spot(node)),
        "",
        enabled=False,
        upcast=False,
    )


def _loss(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    values = [*args, *(as_tensor(torch, v) for k, v in kwargs.items() if k in ("input", "target", "logits", "labels"))]
    first = values[0] if values else unknown()
    if "input" in kwargs:
        first = as_tensor(torch, kwargs["input"])
    tensors = [v for v in values[:2] if isinstance(v, Tensor)]
    floats = [t for t in tensors if t.dtype is None or is_float(t.dtype)]
    region = torch.autocast()
    if not isinstance(first, Tensor):
        return replace_marks(unknown(*(marks_of(values) & KEPT), "loss"), torch)
    opaque = any(isinstance(v, Opaque) for v in values[:2]) and name not in ("cross_entropy", "nll_loss")
    dtype = promote(floats) if floats and not opaque else first.dtype if not opaque else None
    covered = region is not None and region.spot is not None and region.enabled is not False
    if name == "binary_cross_entropy" and covered:
        torch.facts.add(
            Kind.OP, torch.loss_built or torch.spot(node), dtype or "", None, None, "", op=name, under_autocast=True
        )
    elif name == "binary_cross_entropy" and first.low and "probabilities" in first.marks:
        torch.facts.add(
            Kind.OP,
            torch.loss_built or torch.spot(node),
            first.dtype,
            None,
            ("the probabilities were computed here", first.spot),
            "",
            op="bce-on-probabilities",
        )
    decided, _ = autocast_dtype(torch, name, dtype)
    if is_low(decided):
        if torch.disabled_region() is not None:
            _low_in_disabled_region(torch, first, node)
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
    _consumes_softmax(torch, "loss", first, node)
    reduction = constant(kwargs.get("reduction"))
    result = _result(torch, name, decided, [v for v in values if isinstance(v, (Tensor, Opaque))], node)
    low_at = result.spot if result.low else None
    return replace(result, marks=result.marks | {"loss"}, zero_dim=reduction != "none", low_at=low_at)


def replace_marks(value: Opaque, torch: Torch) -> Opaque:
    return value if torch.grad() else Opaque(marks=value.marks - {"float16", "bfloat16", "differentiable"})


def _masked_fill(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0]
    fill = kwargs.get("value") or (args[2] if len(args) > 2 else NONE)
    if not isinstance(tensor, Tensor):
        return unknown(*(marks_of([tensor]) & KEPT))
    _constant(torch, tensor.dtype, fill, node, "Add")
    return _derive(tensor, torch.spot(node), "masked_fill")


def _view(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    tensor = args[0] if isinstance(args[0], Tensor) else None
    if tensor is None:
        return unknown(*(marks_of(args) & KEPT))
    if name in ("detach", "detach_"):
        return replace(tensor, marks=tensor.marks - {"differentiable", "float16", "bfloat16"})
    if name in ("clone",):
        return replace(tensor, marks=tensor.marks | {"created"}, spot=torch.spot(node), loops=torch.loops(), op="clone")
    if name in ("retain_grad",):
        return NONE
    zero = tensor.zero_dim and name in ("clone", "detach", "contiguous", "cpu", "cuda")
    return replace(tensor, zero_dim=zero)


def to(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
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
    dtype = dtype_argument(torch, target)
    if dtype is None:
        return args[0]
    return cast(torch, args[0], dtype, node)


def _unknown_cast(value: Value) -> Value:
    if isinstance(value, Tensor):
        return replace(value, dtype=None)
    return value


def cast(torch: Torch, value: Value, dtype: DType, node: Any) -> Value:
    """A tensor cast to a dtype. An opaque value becomes a tensor of that dtype, or stays a module."""
    if isinstance(value, Opaque):
        return Opaque(value.store, names(dtype), value.marks, torch.spot(node))
    if not isinstance(value, Tensor):
        return unknown()
    marks = value.marks
    target = names(dtype)
    if target is None:
        return replace(value, dtype=None, square=None, low_softmax=None)
    was_integer = value.dtype is not None and not is_float(value.dtype)
    if was_integer and is_float(target):
        marks |= {"counts"} if "small" in marks or value.dtype == frozenset({"bool"}) else {"counts", "positions"}
    if not is_float(target):
        if "cumulated" in marks and value.low:
            torch.facts.add(
                Kind.HOLDS,
                value.low_at or value.spot or torch.spot(node),
                value.dtype,
                Role.POSITIONS,
                ("they become integers here", torch.spot(node)),
                "",
                representable=False,
            )
        marks -= {"differentiable", "float16", "bfloat16", "cumulated"}
    spot = torch.spot(node)
    low_at = value.low_at
    if is_low(target) and marks & {"positions", "schedule"}:
        low_at = low_at or spot
    stays_low = is_low(target)
    return replace(
        value,
        dtype=target,
        marks=marks
        if not (stays_low and len(target) == 1 and "differentiable" in marks)
        else marks | (target & {"float16"}),
        spot=spot if value.dtype != target else value.spot,
        op="cast" if value.dtype != target else value.op,
        low_at=low_at if is_low(target) or (low_at is not None and marks & {"positions", "schedule"}) else None,
        square=value.square if stays_low else None,
        low_softmax=value.low_softmax if stays_low else None,
        tiny=None,
        origin=dtype.origin,
    )


def create(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """zeros, full, arange, zeros_like, tensor, …"""
    spot = torch.spot(node)
    wanted = dtype_argument(torch, kwargs.get("dtype"))
    source = args[0] if args else None
    dtype: Dtypes | None
    origin = None
    marks: set[str] = {"created"}
    zero_dim = False
    if wanted is not None:
        dtype, origin = names(wanted), wanted.origin
    elif name in LIKE or name in NEW or name == "as_tensor":
        dtype = source.dtype if isinstance(source, Tensor) else None
        origin = source.origin if isinstance(source, Tensor) else None
    elif name in ("arange", "tensor", "full", "scalar_tensor"):
        value = args[1] if name == "full" and len(args) > 1 else kwargs.get("fill_value", source)
        dtype = _literal_dtype(torch, args if name == "arange" else [value])
    else:
        dtype = torch.default_dtype()
    if name in LIKE or name in NEW:
        zero_dim = isinstance(source, Tensor) and source.zero_dim and name in LIKE
    elif name in ("tensor", "scalar_tensor"):
        zero_dim = isinstance(source, (Const, Number))
    elif name in ("zeros", "ones", "full", "empty", "rand", "randn"):
        zero_dim = isinstance(source, Seq) and not source.items and not source.open
    if name in ("full", "full_like", "new_full"):
        fill = kwargs.get("fill_value") or (args[1] if name != "new_full" and len(args) > 1 else NONE)
        _constant(torch, dtype, fill, node, "Add")
    if name == "tensor" and isinstance(source, Const):
        _constant(torch, dtype, source, node, "Add")
    low_at = None
    if (
        zero_dim
        and wanted is not None
        and dtype == frozenset({"float32"})
        and name in ("tensor", "full", "scalar_tensor")
    ):
        marks.add("asked_float32")
    if name in ("rand", "rand_like") and is_low(dtype):
        marks.add("uniform")
    if name in ("linspace", "logspace"):
        marks.add("schedule")
        low_at = spot if is_low(dtype) else None
    if name == "tensor" and wanted is not None and isinstance(source, Const):
        _hyperparameter(torch, dtype, origin, source, spot)
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
        torch.loops(),
        low_at=low_at,
        origin=origin if is_low(dtype) else None,
    )


def _hyperparameter(torch: Torch, dtype: Dtypes | None, origin: Spot | None, source: Const, spot: Spot) -> None:
    """A decay such as 0.999 that becomes 1.0 in its dtype."""
    number = float_constant(source)
    if number is None or dtype is None or not is_low(dtype) or not 0.9 < number < 1.0:
        return
    if all(number > 1.0 - 2.0 ** -(FLOATING[name].mantissa_bits + 2) for name in dtype):
        torch.facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.OPTIMIZER_STATE,
            None,
            f"{number:g} becomes 1.0",
            what="hyperparameter",
            key="decay",
        )


def _literal_dtype(torch: Torch, values: Sequence[Value | None]) -> Dtypes | None:
    found: Dtypes = frozenset()
    for value in values:
        if isinstance(value, Seq):
            inner = _literal_dtype(torch, list(value.items))
            if inner is None:
                return None
            found |= inner
        elif isinstance(value, Const) and isinstance(value.value, bool):
            found |= {"bool"}
        elif isinstance(value, Const) and isinstance(value.value, int):
            found |= {"int64"}
        elif isinstance(value, Const) and isinstance(value.value, float):
            default = torch.default_dtype()
            if default is None:
                return None
            found |= default
        else:
            return None
    return found if len(found) == 1 else None
