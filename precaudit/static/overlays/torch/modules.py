"""torch.nn modules as abstract objects: their parameters, their children, their casts and their calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls, classes
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Choice,
    Const,
    Dict,
    DType,
    Dtypes,
    Instance,
    Opaque,
    Param,
    Ref,
    Seq,
    Spot,
    Tensor,
    Value,
    is_float,
    is_low,
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import operands, ops

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

NN = "torch.nn."
WEIGHTED = {
    "Linear": ("linear", ("weight", "bias")),
    "Conv1d": ("conv1d", ("weight", "bias")),
    "Conv2d": ("conv2d", ("weight", "bias")),
    "Conv3d": ("conv3d", ("weight", "bias")),
    "ConvTranspose1d": ("conv_transpose1d", ("weight", "bias")),
    "ConvTranspose2d": ("conv_transpose2d", ("weight", "bias")),
    "ConvTranspose3d": ("conv_transpose3d", ("weight", "bias")),
    "Bilinear": ("bilinear", ("weight", "bias")),
    "LSTM": ("lstm", ("weight_ih_l0", "weight_hh_l0")),
    "GRU": ("gru", ("weight_ih_l0", "weight_hh_l0")),
    "RNN": ("rnn", ("weight_ih_l0", "weight_hh_l0")),
    "MultiheadAttention": ("linear", ("in_proj_weight", "in_proj_bias")),
    "LSTMCell": ("lstm", ("weight_ih", "weight_hh")),
    "GRUCell": ("gru", ("weight_ih", "weight_hh")),
    "RNNCell": ("rnn", ("weight_ih", "weight_hh")),
    **dict.fromkeys(
        (
            "TransformerEncoderLayer",
            "TransformerEncoder",
            "TransformerDecoderLayer",
            "TransformerDecoder",
            "Transformer",
        ),
        ("linear", ("weight",)),
    ),
}
NORMS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm", "GroupNorm": "group_norm"}
BATCH_NORMS = frozenset({"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"})
INSTANCE_NORMS = frozenset({"InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"})
CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"})
FUNCTIONAL = {
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "SELU": "selu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "CELU": "celu",
    "Softsign": "softsign",
    "LogSigmoid": "logsigmoid",
    "Dropout": "dropout",
    "Dropout1d": "dropout1d",
    "Dropout2d": "dropout",
    "Dropout3d": "dropout3d",
    "AlphaDropout": "alpha_dropout",
    **dict.fromkeys(("ZeroPad2d", "ConstantPad1d", "ConstantPad2d", "ReflectionPad1d", "ReflectionPad2d"), "pad"),
    "Identity": "dropout",
    "Flatten": "flatten",
    "Unflatten": "view",
    "MaxPool1d": "max_pool1d",
    "MaxPool2d": "max_pool2d",
    "AvgPool1d": "avg_pool1d",
    "AvgPool2d": "avg_pool2d",
    "AdaptiveAvgPool1d": "adaptive_avg_pool1d",
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
    "Upsample": "interpolate",
    "Hardtanh": "hardtanh",
    "ReLU6": "relu6",
    "Hardswish": "hardswish",
    "PixelShuffle": "pixel_shuffle",
    "GLU": "glu",
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "KLDivLoss": "kl_div",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "TripletMarginLoss": "triplet_margin_loss",
    "MarginRankingLoss": "margin_ranking_loss",
    "CTCLoss": "ctc_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "SoftMarginLoss": "soft_margin_loss",
    "CosineSimilarity": "cosine_similarity",
}
"""torch.nn class -> the functional operation it calls."""


BEGINNINGS = frozenset(("__init__", "setup", "configure_model", "on_fit_start", "on_train_start"))
"""Methods in which a module makes itself ready to be trained; the last four are Lightning's."""


def short(cls: Value) -> str:
    """`Linear` of torch.nn.Linear or torch.nn.modules.linear.Linear; empty for anything else."""
    if isinstance(cls, Ref) and cls.name.startswith(NN):
        return cls.name.rsplit(".", 1)[1]
    return ""


def library_kind(run: Run, value: Instance) -> str:
    """The torch.nn class this object is or derives from."""
    if isinstance(value.cls, Ref):
        return short(value.cls)
    for base in classes.library_bases(value.cls):
        if base.startswith(NN):
            return base.rsplit(".", 1)[1]
    return ""


def is_module(run: Run, value: Value) -> bool:
    if not isinstance(value, Instance):
        return False
    if isinstance(value.cls, Ref):
        return bool(short(value.cls))
    bases = classes.library_bases(value.cls)
    return any(
        b.startswith(NN) or b.rsplit(".", 1)[-1] in ("LightningModule", "PreTrainedModel", "ModelMixin", "Module")
        for b in bases
    )


def new_param(dtype: Dtypes | None, requires_grad: bool | None, spot: Spot | None, **more: Any) -> Param:
    return Param({"dtype": dtype, "requires_grad": requires_grad, "spot": spot, **more})


def build(run: Run, kind: str, args: list[Value], kwargs: dict[str, Value], node: Any, into: Store) -> None:
    """Fills in the parameters, buffers and children that a torch.nn constructor makes."""
    spot = run.spot(node)
    given = operands.dtype_argument(run, kwargs.get("dtype"))
    dtype = operands.names(given) if given is not None else run.default_dtype()
    made = spot if given is not None else None
    if given is None and is_low(dtype):
        made = run.interpreter.world.get("default_spot")
        if made is not None and dtype is not None:
            run.training.built_by_default.append((made, dtype, spot, into))
    origin = given.origin if given is not None else None
    chosen = given is not None and not given.read
    if chosen and origin is not None and made is not None and origin.function not in ("", made.function):
        made = origin  # by the caller
    if (
        kind in WEIGHTED
        or kind in ("Embedding", "EmbeddingBag")
        or kind in NORMS
        or kind in BATCH_NORMS | INSTANCE_NORMS
    ):
        names = (
            WEIGHTED[kind][1]
            if kind in WEIGHTED
            else ("weight",)
            if kind.startswith("Embedding")
            else ("weight", "bias")
        )
        for name in names:
            if name == "bias" and truth(kwargs.get("bias", Const(True))) is False:
                continue
            into[name] = new_param(dtype, True, made, origin=origin)
        if kind in BATCH_NORMS and truth(kwargs.get("track_running_stats", Const(True))) is not False:
            into["running_mean"] = new_param(dtype, False, made, kind="buffer")
            into["running_var"] = new_param(dtype, False, made, kind="buffer")
    elif kind in CONTAINERS:
        _fill_container(run, kind, args, into)


def _fill_container(run: Run, kind: str, args: list[Value], into: Store) -> None:
    items: list[tuple[str, Value]] = []
    open_ = False
    for arg in args:
        if isinstance(arg, Dict):
            items += [(str(key), value) for key, value in arg.store.items() if key != ANY]
            open_ = open_ or ANY in arg.store
            if ANY in arg.store:
                items.append(("*", arg.store[ANY]))
        elif isinstance(arg, Seq):
            open_ = open_ or arg.open
            items += [(str(len(items) + n), value) for n, value in enumerate(arg.items)]
        elif isinstance(arg, Opaque) and kind != "Sequential":
            items.append((str(len(items)), arg))
            open_ = True
        else:
            items.append((str(len(items)), arg))
    for name, value in items:
        into[name] = value
    if open_:
        into["\0open"] = True


def members(value: Instance) -> list[Value]:
    """The children of a container in order."""
    return [v for k, v in value.store.items() if isinstance(k, str) and not k.startswith("\0") and isinstance(v, Value)]


def walk(run: Run, value: Value, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Value]]:
    """Every module and parameter under a module, with its name, itself first."""
    seen = set() if seen is None else seen
    if isinstance(value, Instance):
        if id(value.store) in seen or not is_module(run, value):
            return
        seen.add(id(value.store))
        yield prefix, value
        for name, child in list(value.store.items()):
            if isinstance(name, str) and not name.startswith("\0"):
                yield from walk(run, child, f"{prefix}.{name}" if prefix else name, seen)
    elif isinstance(value, (Param, Opaque)):
        if id(value.store) not in seen:
            seen.add(id(value.store))
            yield prefix, value
    elif isinstance(value, Choice):
        for option in value.options:
            yield from walk(run, option, prefix, seen)


def parameters(run: Run, value: Value, buffers: bool = False) -> list[tuple[str, Param]]:
    """Named parameters of a module, those of opaque children as one parameter each."""
    if isinstance(value, Opaque):
        return [("", Param(value.store, ""))]
    found = []
    for name, item in walk(run, value):
        if (isinstance(item, Param) and (item.store.get("kind") == "buffer") == buffers) or (
            isinstance(item, Opaque) and not buffers
        ):
            found.append((name, Param(item.store, name)))
    return found


def cast_module(run: Run, value: Value, dtype: DType, node: Any) -> None:
    """Casts every floating parameter and buffer of a module in place, as `Module.to(dtype)` does."""
    target = operands.names(dtype)
    spot = run.spot(node)
    stores = []
    if isinstance(value, Opaque):
        stores = [value.store]
    else:
        for _, item in walk(run, value):
            if isinstance(item, (Param, Opaque)):
                stores.append(item.store)
    put = run.interpreter.heap.put
    by_itself = _halves_itself(run, value)
    for store in stores:
        current = store.get("dtype")
        if current is not None and not is_float(current):
            continue
        put(store, "dtype", target)
        put(store, "spot", spot)
        put(store, "origin", dtype.origin)
        if by_itself:
            put(store, "half_call", spot)
    if is_low(target):
        tell(run, "module.cast", [Param(store) for store in stores], node, kwargs={"dtype": dtype})


def _halves_itself(run: Run, value: Value) -> bool:
    """Whether a module is cast by its own method, before or when its training starts."""
    frames = run.interpreter.frames
    if not frames or not isinstance(value, Instance) or not isinstance(frames[-1].receiver, Instance):
        return False
    function = frames[-1].function
    begins = function is not None and function.name.value in BEGINNINGS
    return begins and frames[-1].receiver.store is value.store


def set_trainable(run: Run, value: Value, requires_grad: bool | None) -> None:
    put = run.interpreter.heap.put
    stores = [value.store] if isinstance(value, (Opaque, Param)) else []
    if isinstance(value, Instance):
        stores = [i.store for _, i in walk(run, value) if isinstance(i, (Param, Opaque))]
    for store in stores:
        if store.get("kind") != "buffer":
            put(store, "requires_grad", requires_grad)


def set_training(run: Run, value: Value, training: bool | None) -> None:
    put = run.interpreter.heap.put
    if isinstance(value, Opaque):
        put(value.store, "training", training)
    for _, item in walk(run, value):
        if isinstance(item, Instance):
            put(item.store, "\0training", training)


def escape(run: Run, value: Value, depth: int = 0) -> None:
    """A module was handed to code that cannot be followed: its dtypes and frozen flags are no longer known."""
    put = run.interpreter.heap.put
    if isinstance(value, Seq) and depth < 3:
        for item in value.items:
            escape(run, item, depth + 1)
    stores = [value.store] if isinstance(value, (Opaque, Param)) else []
    if isinstance(value, Instance) and is_module(run, value):
        stores = [i.store for _, i in walk(run, value) if isinstance(i, (Param, Opaque))]
    for store in stores:
        if "dtype" in store or "requires_grad" in store:
            put(store, "dtype", None)
            put(store, "requires_grad", None)
        if "\0quant" in store:
            run.training.quantised_bases.add(store["\0quant"])


def call_library(run: Run, value: Instance, kind: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """The result of calling a torch.nn module of this kind."""
    store = value.store
    first = operands.as_tensor(run, args[0]) if args else operands.as_tensor(run, kwargs.get("input", unknown()))
    if kind == "Sequential":
        return _call_sequential(run, value, args, node)
    if kind in WEIGHTED:
        name, weights = WEIGHTED[kind]
        params = [store[w] for w in weights if w in store]
        result = ops.apply(run, "linear" if name in ("lstm", "gru", "rnn") else name, [first, *params], {}, node)
        return _as_given_back(kind, result)
    if kind in ("Embedding", "EmbeddingBag"):
        weight = operands.as_tensor(run, store.get("weight", unknown()))
        if isinstance(weight, Tensor):
            return ops.result_of(run, "embedding", weight.dtype, [weight], node)
        return unknown()
    if kind in NORMS:
        params = [store[w] for w in ("weight", "bias") if w in store]
        result = ops.apply(run, NORMS[kind], [first], {}, node)
        if isinstance(result, Tensor) and params:
            marks = operands.marks_of([operands.as_tensor(run, p) for p in params]) & {"differentiable"}
            return Tensor(result.dtype, result.spot, result.op, result.marks | marks)
        return result
    if kind in BATCH_NORMS:
        if "running_var" in store and in_training(value) is True:
            tell(run, "running_statistics", [store["running_var"]], node)
        return ops.apply(run, "batch_norm", [first], {}, node)
    if kind in INSTANCE_NORMS:
        return ops.apply(run, "instance_norm", [first], {}, node)
    if kind in FUNCTIONAL:
        extra = {key[1:]: store[key] for key in ("\0reduction",) if key in store}
        if "\0spot" in store:
            run.loss_built = store["\0spot"]
        rest = [operands.as_tensor(run, a) for a in args[1:]]
        result = ops.apply(run, FUNCTIONAL[kind], [first, *rest], {**kwargs, **extra}, node)
        run.loss_built = None
        return result
    return unknown(*(operands.marks_of([first, *args]) & operands.KEPT))


def _as_given_back(kind: str, result: Value) -> Value:
    """What comes with the output of a recurrent or an attention layer: a state, weights."""
    if kind == "LSTM":
        return seq([result, seq([result], "tuple", open=True)], "tuple")
    return seq([result, result], "tuple") if kind in ("GRU", "RNN", "MultiheadAttention", "LSTMCell") else result


def in_training(value: Instance) -> bool | None:
    """Whether a module is in training mode, as it is until `eval()` is called; None where that is not known."""
    mode: bool | None = value.store.get("\0training", True)
    return mode


def _call_sequential(run: Run, value: Instance, args: list[Value], node: Any) -> Value:
    result = args[0] if args else unknown()
    for child in members(value):
        result = calls.call(run.interpreter, child, [result], {}, node)
    return result


def deepcopy(run: Run, value: Value, memo: dict[int, Value] | None = None) -> Value:
    """A copy with parameters and children of its own."""
    memo = {} if memo is None else memo
    if isinstance(value, Instance):
        if id(value.store) in memo:
            return memo[id(value.store)]
        made = Instance(value.cls, {})
        memo[id(value.store)] = made
        for key, item in value.store.items():
            made.store[key] = deepcopy(run, item, memo) if isinstance(item, Value) else item
        return made
    if isinstance(value, Param):
        if id(value.store) not in memo:
            memo[id(value.store)] = Param(dict(value.store), value.name)
        return memo[id(value.store)]
    if isinstance(value, Opaque):
        if id(value.store) not in memo:
            memo[id(value.store)] = Opaque(dict(value.store), value.dtype, value.marks)
        return memo[id(value.store)]
    if isinstance(value, Seq):
        return Seq({**value.store, "items": tuple(deepcopy(run, i, memo) for i in value.items)}, value.kind)
    if isinstance(value, Choice):
        return Choice(tuple(deepcopy(run, o, memo) for o in value.options))
    return value


def buffer(tensor: Value, name: str) -> Value:
    if not isinstance(tensor, Tensor):
        return (
            Param({"dtype": None, "requires_grad": False, "spot": None, "kind": "buffer"})
            if isinstance(tensor, Opaque)
            else tensor
        )
    positions = bool(tensor.marks & {"positions"}) or name in ("inv_freq", "freqs", "freqs_cis")
    return Param(
        {
            "dtype": tensor.dtype,
            "requires_grad": False,
            "spot": tensor.spot,
            "kind": "buffer",
            "name": name,
            "positions": positions,
            "origin": tensor.origin,
            "created": True,
            "zero_dim": tensor.zero_dim,
        }
    )
