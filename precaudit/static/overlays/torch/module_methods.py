"""What torch.nn.Module's methods do to a module, or to something that may be one: one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from precaudit.static.language import calls
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Choice,
    Const,
    Context,
    Dict,
    DType,
    Function,
    Instance,
    Opaque,
    Seq,
    Tensor,
    Value,
    constant,
    join_all,
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import casts, modules, operands, opnames, reduction, scaling

CARE = frozenset(("parameters", "named_parameters", "enable_input_require_grads"))
"""Methods by which a script may prepare a k-bit model itself."""


def method(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value | None:
    """What the method gives; None where it is no method that every module has."""
    if name in CARE and isinstance(value, Opaque) and "\0kbit" in value.store:
        run.interpreter.heap.put(value.store, "\0cared", True)
    act = _ACTS.get(name)
    if act is not None:
        return act(run, value, name, args, kwargs, node)
    of_container = _OF_CONTAINERS.get(name)
    if of_container is None or not isinstance(value, Instance) or modules.short(value.cls) not in modules.CONTAINERS:
        return None
    return of_container(run, value, name, args, kwargs, node)


def _cast(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`.half()`, `.float()`."""
    dtype = DType(frozenset({opnames.CASTS[name]}), run.spot(node))
    modules.cast_module(run, value, dtype, node)
    return casts.cast(run, value, dtype, node) if isinstance(value, Opaque) else value


def _type(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value | None:
    return _to(run, value, name, args, kwargs, node) if args else None


def _to(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    target = kwargs.get("dtype")
    for arg in args:
        if isinstance(arg, DType) or (isinstance(arg, Choice) and all(isinstance(o, DType) for o in arg.options)):
            target = arg
        elif isinstance(arg, Tensor):
            target = DType(arg.dtype or frozenset())
    dtype = operands.dtype_argument(run, target)
    if dtype is not None:
        modules.cast_module(run, value, dtype, node)
        if isinstance(value, Opaque):
            return casts.cast(run, value, dtype, node)
    elif isinstance(value, Opaque) and any(isinstance(a, Opaque) for a in args):
        return Opaque(value.store, None, value.marks)
    return value


def _itself(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return value


def _nobody_knows(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return unknown()


def _frozen(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`requires_grad_(False)`, `freeze()`."""
    wanted = args[0] if args else kwargs.get("requires_grad", Const(name != "freeze"))
    modules.set_trainable(run, value, truth(wanted))
    return value


def _mode(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`train()`, `train(False)`, `eval()`."""
    mode = args[0] if args else kwargs.get("mode", Const(True))
    modules.set_training(run, value, truth(mode) if name == "train" else False)
    return value


def _parameters(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`parameters()`, `named_buffers()`."""
    found = modules.parameters(run, value, buffers="buffers" in name)
    items: list[Value] = [p for _, p in found]
    if name.startswith("named"):
        items = [seq([Const(n) if n else unknown(), p], "tuple") for n, p in found]
    return seq(items, "iterator", open=isinstance(value, Opaque))


def _modules(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if isinstance(value, Opaque):
        item: Value = unknown()
        return seq([seq([unknown(), item], "tuple") if name.startswith("named") else item], "iterator", open=True)
    found = [(n, m) for n, m in modules.walk(run, value) if isinstance(m, (Instance, Opaque))]
    if "children" in name:
        direct = list(value.store.values()) if isinstance(value, Instance) else []
        found = [(n, m) for n, m in found if any(m is d for d in direct)]
    items: list[Value] = [m for _, m in found]
    if name.startswith("named"):
        items = [seq([Const(n), m], "tuple") for n, m in found]
    return seq(items, "iterator")


def _state_dict(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    store: Store = {"\0module": True}
    tensors = [operands.as_tensor(run, p) for _, p in modules.parameters(run, value)]
    if tensors and isinstance(value, Instance):
        marks = frozenset({"weights", _owner(value)})
        tensors = [replace(t, marks=marks) for t in tensors if isinstance(t, Tensor)]
        store[ANY] = join_all(tensors)
    else:
        store[ANY] = unknown("weights")
    return Dict(store, "state_dict")


def _update_parameters(
    run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    _averaged(run, value, node)
    return Const(None)


def _load(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`load_state_dict(average)`, where the entries may be sums of the module's own weights and of others'."""
    entries = args[0].store.values() if args and isinstance(args[0], Dict) else ()
    if isinstance(value, Instance) and any(isinstance(t, Tensor) and _is_average(t, value) for t in entries):
        _averaged(run, value, node)
    return unknown()


def _apply(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    for _, item in list(modules.walk(run, value)):
        if isinstance(item, (Instance, Opaque)) and args and isinstance(args[0], Function):
            calls.call(run.interpreter, args[0], [item], {}, node)
    return value


def _register_buffer(
    run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    if not isinstance(value, Instance):
        return None
    key = constant(args[0] if args else kwargs.get("name"))
    tensor = args[1] if len(args) > 1 else kwargs.get("tensor", unknown())
    if isinstance(key, str):
        run.interpreter.heap.put(value.store, key, modules.buffer(tensor, key))
    return Const(None)


def _register(
    run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """`register_parameter(name, parameter)`, `add_module(name, module)`."""
    if not isinstance(value, Instance):
        return None
    key = constant(args[0]) if args else None
    if isinstance(key, str) and len(args) > 1:
        run.interpreter.heap.put(value.store, key, args[1])
    return Const(None)


def _append(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`layers.append(layer)`, `layers.extend([...])`."""
    added = args[-1] if args else unknown()
    items = list(added.items) if isinstance(added, Seq) and name == "extend" else [added]
    assert isinstance(value, Instance)
    for item in items:
        run.interpreter.heap.put(value.store, str(len(modules.members(value))), item)
    return value


def _entries(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`items()`, `values()` and `keys()` of a ModuleDict."""
    assert isinstance(value, Instance)
    pairs = [(k, v) for k, v in value.store.items() if isinstance(v, Value) and not str(k).startswith("\0")]
    if name == "items":
        return seq([seq([Const(k), v], "tuple") for k, v in pairs])
    return seq([v if name == "values" else Const(k) for k, v in pairs])


def _comm_hook(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    reduction.comm_hook(run, [*args, *kwargs.values()], node)
    return Const(None)


def _zero_grad(run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    scaling.gradients_cleared(run, node)
    return Const(None)


def _averaged(run: Run, value: Value, node: Any) -> None:
    """A module's weights become an average of themselves and of others'."""
    tell(run, "average", [param for _, param in modules.parameters(run, value)], node)


def _is_average(tensor: Tensor, module: Instance) -> bool:
    """Whether an entry of a state dict is a sum of the module's own weights and of other weights."""
    return len(tensor.parts) > 1 and any(_owner(module) in part.marks for part in tensor.parts)


def _owner(module: Instance) -> str:
    return f"of:{id(module.store)}"


def _without_reduction(
    run: Run, value: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`no_sync()` of a module that is data-parallel: nothing is another dtype inside it."""
    return Context("null")


Act = Callable[[Run, Value, str, list[Value], dict[str, Value], Any], "Value | None"]
_NAMES: list[tuple[Act, Iterable[str]]] = [
    (_cast, (name for name, to in opnames.CASTS.items() if to in ("float16", "bfloat16", "float32", "float64"))),
    (_to, ("to",)),
    (_type, ("type",)),
    (_itself, "cuda cpu xpu npu to_empty share_memory compile gradient_checkpointing_enable".split()),
    (_frozen, ("requires_grad_", "freeze", "unfreeze")),
    (_mode, ("train", "eval")),
    (_parameters, ("parameters", "named_parameters", "buffers", "named_buffers")),
    (_modules, ("modules", "named_modules", "children", "named_children")),
    (_state_dict, ("state_dict",)),
    (_update_parameters, ("update_parameters",)),
    (_load, ("load_state_dict",)),
    (_apply, ("apply", "_apply")),
    (_register_buffer, ("register_buffer",)),
    (_register, ("register_parameter", "add_module", "register_module")),
    (_comm_hook, ("register_comm_hook",)),
    (_zero_grad, ("zero_grad",)),
    (_without_reduction, ("no_sync",)),
    (
        _nobody_knows,
        "get_submodule register_forward_hook register_full_backward_hook set_grad_checkpointing".split(),
    ),
]
_ACTS: dict[str, Act] = {name: act for act, names in _NAMES for name in names}
"""Name of a method -> what it does to any module."""
_OF_CONTAINERS: dict[str, Act] = {
    **dict.fromkeys(("append", "extend", "insert", "add"), _append),
    **dict.fromkeys(("items", "values", "keys"), _entries),
}
"""The same of those that only ModuleList, ModuleDict and their like have."""
