"""What torch's own functions and classes give back when called."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.model.vocabulary import FLOATING
from precaudit.static.language import calls, objects
from precaudit.static.language.values import (
    NONE,
    Const,
    Instance,
    Number,
    Param,
    Ref,
    Seq,
    Tensor,
    Value,
    options,
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays.events import Op, tell
from precaudit.static.overlays.torch import (
    backward,
    modules,
    operands,
    ops,
    optimizers,
    scaling,
    updates,
)

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def same_model(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A wrapper that gives back the model it was given, as far as dtypes go."""
    return args[0] if args else kwargs.get("module", unknown())


def ddp(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`DistributedDataParallel(model)`, whose buckets may have a policy like FSDP's."""
    run.met("ddp")
    tell(run, "DistributedDataParallel", args, node, kwargs=kwargs)
    return same_model(run, name, args, kwargs, node)


def clip(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    limit = kwargs.get("max_norm", kwargs.get("clip_value", args[1] if len(args) > 1 else None))
    scaling.clipped(run, limit, node)
    return Tensor(frozenset({"float32"}), run.spot(node), "norm", zero_dim=True)


def optimizer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A class of torch.optim; schedulers and weight averages are none."""
    if name.rpartition(".")[2][:1].isupper() and "lr_scheduler" not in name and "swa" not in name:
        return optimizers.optimizer(run, name, args, kwargs, node)
    return other(run, name, args, kwargs, node)


def collective(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A function of torch.distributed itself, not of the packages inside it."""
    if name.count(".") > 2:
        return other(run, name, args, kwargs, node)
    named = {key: operands.as_tensor(run, value) for key, value in kwargs.items()}
    tell(run, name.rpartition(".")[2], [operands.as_tensor(run, value) for value in args], node, kwargs=named)
    return unknown()


def first(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return args[0] if args else unknown()


def functional(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A function on tensors; a name that ends in `_` works in place."""
    last = name.rpartition(".")[2]
    short = {"vector_norm": "norm", "matrix_norm": "norm"}.get(last, last)
    _foreach(run, short, args, node)
    out = kwargs.get("out")
    rest = {key: value for key, value in kwargs.items() if key != "out"}
    result = ops.apply(run, short.rstrip("_") if short.endswith("_") else short, args, rest, node)
    return result if out is None else _written_over(run, operands.as_tensor(run, out), result, node)


def _written_over(run: Run, out: Value, result: Value, node: Any) -> Value:
    """What `out=` names from now on: the result in the storage that was there, of which nothing is left."""
    if not isinstance(out, Tensor) or not isinstance(result, Tensor):
        return result
    marks = result.marks - {"float16", "bfloat16"} | (result.marks & out.marks & {"created"})
    written = replace(result, dtype=out.dtype, marks=marks, loops=run.loops())
    target = next((arg.value for arg in node.args if arg.keyword is not None and arg.keyword.value == "out"), None)
    if isinstance(target, (cst.Name, cst.Subscript)):
        objects.assign(run.interpreter, target, written)
    return written


def other(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """Something else in torch: `torch.xyz` works on tensors, what lies deeper is not known."""
    if name.count(".") == 1:
        return functional(run, name, args, kwargs, node)
    return unknown(*(operands.marks_of(args) & operands.KEPT))


def _foreach(run: Run, name: str, args: list[Value], node: Any) -> None:
    """`torch._foreach_add_(targets, others)` and its kin change each target in place."""
    if not name.startswith("_foreach") or not name.endswith("_") or not args:
        return
    if "gradient" in operands.marks_of(args[:1]):
        scaling.gradient_written(run, node)
    short = name.removeprefix("_foreach_").rstrip("_")
    others = [objects.element(run.interpreter, a) if isinstance(a, Seq) else a for a in args[1:]]
    if short in ("add", "sub", "lerp", "addcmul", "addcdiv", "copy"):
        for target in options(objects.element(run.interpreter, args[0])):
            updates.update(run, target, others, node, short, True)


def nn(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """An object of a class in torch.nn."""
    last = name.rpartition(".")[2]
    if not last[:1].isupper():
        return other(run, name, args, kwargs, node)
    if last == "Parameter":
        return _parameter(run, args, kwargs, node)
    if last == "Buffer":
        return modules.buffer(operands.as_tensor(run, args[0]) if args else unknown(), "")
    store: dict[Any, Any] = {}
    if last == "Upsample":
        store["\0mode"] = kwargs.get("mode", NONE)
    if "reduction" in kwargs:
        store["\0reduction"] = kwargs["reduction"]
    if last.endswith("Loss"):
        store["\0spot"] = run.spot(node)
    modules.build(run, last, args, kwargs, node, store)
    return Instance(Ref(name), store)


def _parameter(run: Run, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    data = operands.as_tensor(run, args[0] if args else kwargs.get("data", unknown()))
    wanted = kwargs.get("requires_grad", args[1] if len(args) > 1 else Const(True))
    dtype = data.dtype if isinstance(data, Tensor) else None
    origin = data.origin if isinstance(data, Tensor) else None
    zero_dim = isinstance(data, Tensor) and data.zero_dim
    return modules.new_param(dtype, truth(wanted), run.spot(node), origin=origin, fresh=True, zero_dim=zero_dim)


def deepcopy(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return modules.deepcopy(run, args[0]) if args else unknown()


def save(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = args[0] if args else kwargs.get("obj", unknown())
    run.bus.tell(Op(run, "save", [value], kwargs, [value], value, node))
    return NONE


def autograd_grad(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    root = operands.as_tensor(run, args[0] if args else kwargs.get("outputs", unknown()))
    keys = [int(m.split(":")[1]) for m in operands.marks_of([root]) if m.startswith("scaler:")]
    tell(run, "autograd.grad", [root], node, kwargs=kwargs)
    asked = args[1] if len(args) > 1 else kwargs.get("inputs")
    weights = [p for p in optimizers.collect(run, asked or unknown()) if isinstance(p, Param)]
    if weights and not truth(kwargs.get("create_graph", Const(False))):
        backward.gradients_asked(run, root, node)
    marks = {"gradient"}
    if keys and truth(kwargs.get("create_graph", Const(False))):
        marks |= {"penalty"}
    found = Tensor(None, run.spot(node), "grad", frozenset(marks), low_at=run.spot(node))
    return seq([found], "tuple", open=True)


def backward_of(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    root = args[0] if args else kwargs.get("tensors", unknown())
    handed = len(args) > 1 or "grad_tensors" in kwargs
    for item in root.items if isinstance(root, Seq) else (root,):
        (backward.from_gradient if handed else backward.backward)(run, item, node)
    return NONE


def set_default_dtype(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    wanted = operands.dtype_argument(run, args[0] if args else None)
    dtype = operands.names(wanted) if wanted is not None else None
    run.interpreter.heap.put(run.interpreter.world, "default_dtype", dtype)
    run.interpreter.heap.put(run.interpreter.world, "default_spot", run.spot(node))
    return NONE


def finfo(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    wanted = operands.dtype_argument(run, args[0] if args else None)
    dtype = operands.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {}
    if dtype is not None and len(dtype) == 1 and next(iter(dtype)) in FLOATING:
        facts = FLOATING[next(iter(dtype))]
        store = {
            "max": Const(facts.max),
            "min": Const(-facts.max),
            "tiny": Const(facts.smallest_normal),
            "smallest_normal": Const(facts.smallest_normal),
            "eps": Const(2.0**-facts.mantissa_bits),
        }
    else:
        store = {key: Number() for key in ("max", "min", "tiny", "smallest_normal", "eps")}
    return Instance(Ref("torch.finfo"), store)


def checkpoint(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    return calls.call(
        run.interpreter, args[0], args[1:], {k: v for k, v in kwargs.items() if k not in ("use_reentrant",)}, node
    )


def averaged_model(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    copied = modules.deepcopy(run, args[0])
    for _, param in modules.parameters(run, copied):
        run.interpreter.heap.put(param.store, "spot", run.spot(node))
    return copied


def backend_flag(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A flag of torch.backends that is set by calling it."""
    tell(run, "torch.backends", [Ref(name), *args], node)
    return NONE
