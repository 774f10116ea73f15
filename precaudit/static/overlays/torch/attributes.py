"""Attributes, items and iteration of what the code under check did not define."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import FLOATING
from precaudit.static.language import calls, classes, objects
from precaudit.static.language.values import (
    ANY,
    Bound,
    Class,
    Const,
    Device,
    Dict,
    DType,
    Function,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Param,
    Ref,
    Scaler,
    Seq,
    Spot,
    Tensor,
    Value,
    choice,
    constant,
    is_low,
    join,
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays import data_files, records
from precaudit.static.overlays.events import Op, tell
from precaudit.static.overlays.torch import modules, operands, opnames, optimizers, scaling

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def reference(name: str, spot: Spot) -> Value:
    """An attribute of an imported module."""
    front, _, last = name.rpartition(".")
    if front == "torch":
        if last in opnames.DTYPE_NAMES:
            return DType(frozenset({opnames.DTYPE_NAMES[last]}), spot)
        if last in ("inf", "nan", "pi", "e"):
            return Const(getattr(math, last))
    if front in ("math", "numpy") and last in ("inf", "nan", "pi", "e"):
        return Const(getattr(math, last))
    return Ref(name)


def attribute(run: Run, value: Value, name: str, node: Any) -> Value:
    """An attribute that the object's own store does not have."""
    read = _BY_KIND.get(type(value))
    return read(run, value, name, node) if read is not None else Bound(value, name)


def _instance_attribute(run: Run, value: Instance, name: str, node: Any) -> Value:
    if modules.is_module(run, value) and name in ("module", "_orig_mod", "base_model"):
        return value
    if value.library == data_files.PATH and (found := data_files.path_attribute(value, name)) is not None:
        return found
    if value.library == data_files.CONFIG:
        return Bound(Dict(value.store), name) if name in data_files.CONFIG_METHODS else unknown()
    if name == "__dict__":
        return records.as_dict(value)
    if name == "training":
        on = value.store.get("\0training")
        return Const(on) if isinstance(on, bool) else unknown()
    return Bound(value, name)


def _optimizer_attribute(run: Run, value: Optimizer, name: str, node: Any) -> Value:
    if name == "param_groups":
        params = seq(value.store["params"], open=True)
        return seq([Dict({"params": params, ANY: Number()})], open=True)
    return optimizers.state(value) if name == "state" else Bound(value, name)


def _scaler_attribute(run: Run, value: Scaler, name: str, node: Any) -> Value:
    scaling.looked_into(run, value, name, node)
    return Bound(value, name)


def _device_attribute(run: Run, value: Device, name: str, node: Any) -> Value:
    known = name == "type" and "?" not in value.types
    return choice(Const(t) for t in sorted(value.types)) if known else unknown()


def _dtype_attribute(run: Run, value: DType, name: str, node: Any) -> Value:
    if name == "is_floating_point":
        return Const(all(n in FLOATING for n in value.names)) if value.names else unknown()
    return Number() if name == "itemsize" else unknown()


def _seq_attribute(run: Run, value: Seq, name: str, node: Any) -> Value:
    """`values` and `indices` of what `max(dim=…)` gives."""
    pair = value.kind == "pair" and name in ("values", "indices")
    return value.items[name == "indices"] if pair else Bound(value, name)


def _function_attribute(run: Run, value: Function, name: str, node: Any) -> Value:
    return unknown()


def _bound_attribute(run: Run, value: Bound, name: str, node: Any) -> Value:
    """An attribute of an attribute of something unknown."""
    if isinstance(value.receiver, Opaque):
        return attribute(run, operands.held(value), name, node)
    return Bound(value, name)


def _param_attribute(run: Run, value: Param, name: str, node: Any) -> Value:
    if name == "data":
        return replace(value, detached=True)
    if name == "requires_grad":
        if "requires_grad" not in value.store:
            return unknown()
        return Const(value.trainable) if value.trainable is not None else unknown()
    if name == "grad":
        dtype = value.dtype
        return Tensor(dtype, value.store.get("spot"), "grad", frozenset({"gradient"}))
    if "attr:" + name in value.store:
        kept: Value = value.store["attr:" + name]
        return kept
    tensor = operands.as_tensor(run, value)
    if name in ("shape", "device", "dtype", "ndim", "T", "mT", "is_leaf", "grad_fn", "is_cuda", "layout"):
        return _tensor_attribute(run, tensor, name, node) if isinstance(tensor, Tensor) else unknown()
    if name in value.store and name not in ("dtype", "spot", "origin", "kind", "positions", "created", "zero_dim"):
        stored: Value = value.store[name]
        return stored
    return Bound(value, name)


def _tensor_attribute(run: Run, value: Tensor, name: str, node: Any) -> Value:
    if name == "dtype":
        return DType(value.dtype, value.origin, read=True) if value.dtype else unknown("dtype")
    if name == "shape":
        return seq([Number()], "shape", open=True)
    if name in ("ndim", "itemsize", "nbytes"):
        return Number()
    if name == "device":
        return unknown("device")
    if name == "data":
        return replace(value, marks=value.marks - {"differentiable", "float16", "bfloat16"})
    if name in ("T", "mT", "H", "real"):
        return value
    if name == "grad":
        return Tensor(value.dtype, value.spot, "grad", frozenset({"gradient"}))
    if name in ("is_cuda", "requires_grad", "is_leaf", "grad_fn", "is_sparse", "layout", "is_contiguous"):
        return unknown()
    return Bound(value, name)


def _opaque_attribute(run: Run, value: Opaque, name: str, node: Any) -> Value:
    if name in ("shape",):
        return seq([Number()], "shape", open=True)
    if name == "dtype" and value.dtype is not None:
        return DType(value.dtype)
    if name == "dtype":
        return unknown("dtype")
    if name == "device":
        return unknown("device")
    if name == "module":
        return value
    if name in ("grad",):
        return unknown("gradient")
    key = "attr:" + name
    if key in value.store:
        stored: Value = value.store[key]
        return stored
    return Bound(value, name)


_BY_KIND: dict[type, Callable[..., Value]] = {
    Param: _param_attribute,
    Tensor: _tensor_attribute,
    Opaque: _opaque_attribute,
    Instance: _instance_attribute,
    Optimizer: _optimizer_attribute,
    Scaler: _scaler_attribute,
    Device: _device_attribute,
    DType: _dtype_attribute,
    Seq: _seq_attribute,
    Function: _function_attribute,
    Bound: _bound_attribute,
}
"""Kind of value -> what an attribute of it is; of any other it is known when it is called."""


def attribute_set(run: Run, target: Value, name: str, value: Value, node: Any) -> None:
    put = run.interpreter.heap.put
    if isinstance(target, Param):
        if name == "requires_grad":
            put(target.store, "requires_grad", truth(value))
        elif name == "data":
            tensor = operands.as_tensor(run, value)
            put(target.store, "dtype", tensor.dtype if isinstance(tensor, Tensor) else None)
            put(target.store, "spot", run.spot(node))
        elif name == "grad":
            scaling.gradients_cleared(run, node)
            scaling.gradient_replaced(run, value, node)
        else:
            put(target.store, "attr:" + name, value)
        return
    if isinstance(target, Ref) and target.name.startswith("torch.backends."):
        tell(run, "torch.backends", [Ref(f"{target.name}.{name}"), value], node)
    if isinstance(target, Instance):
        _replaced_parameter(run, target, name, value, node)
    if isinstance(target, Opaque):
        if name == "requires_grad":
            put(target.store, "requires_grad", truth(value))
        else:
            put(target.store, "attr:" + name, value)
    if isinstance(target, Scaler):
        scaling.looked_into(run, target, name, node)
    if isinstance(target, Tensor) and name == "grad":
        scaling.gradient_written(run, node)


def _replaced_parameter(run: Run, target: Instance, name: str, value: Value, node: Any) -> None:
    """A parameter of one module given to another is tied; a fresh one in its place breaks the tie."""
    before = target.store.get(name)
    if isinstance(before, Instance) and isinstance(value, Instance):
        _replaced_module(run, before, value, node)
    if not isinstance(value, Param) or not isinstance(before, Param):
        return
    if before.store.get("tied") and value.store.get("fresh"):
        untied = run.training.untied
        if any(old is before.store and new is value.store for old, new, *_ in untied):
            run.training.untied = [entry for entry in untied if entry[0] is not before.store]  # tied again
        else:
            untied.append((before.store, value.store, run.spot(node), value.dtype))
    elif not value.store.get("fresh"):
        run.training.untied = [entry for entry in run.training.untied if entry[1] is not before.store]  # tied again
        run.interpreter.heap.put(value.store, "tied", True)


def _replaced_module(run: Run, before: Instance, value: Instance, node: Any) -> None:
    """`model.lm_head = nn.Linear(...)` of a low model, in float32: no part of it is tied to anything any more."""
    for name, old in before.store.items():
        new = value.store.get(name)
        if not isinstance(old, Param) or not isinstance(new, Param) or not old.store.get("tied"):
            continue
        if not new.store.get("tied") and is_low(old.dtype) and not is_low(new.dtype):
            run.training.untied.append((old.store, new.store, run.spot(node), new.dtype))


def item(run: Run, value: Value, index: Value, node: Any) -> Value:
    if isinstance(value, (Param, Bound)):
        value = operands.as_tensor(run, value)
    if isinstance(value, Tensor):
        return replace(value, zero_dim=False)
    if isinstance(value, Ref) and value.name.endswith(".__dict__") and isinstance(index, Const):
        return reference(f"{value.name.removesuffix('.__dict__')}.{index.value}", run.spot(node))
    if isinstance(value, Instance):
        kind = modules.short(value.cls)
        key = constant(index)
        if value.library == data_files.CONFIG:
            held: Value = value.store.get(key, unknown())
            return held
        if kind in modules.CONTAINERS:
            children = modules.members(value)
            if isinstance(key, int) and "\0open" not in value.store and -len(children) <= key < len(children):
                return children[key]
            if isinstance(key, str) and key in value.store:
                found: Value = value.store[key]
                return found
            return choice(children) if children else unknown()
        if isinstance(value.cls, Class):
            method = classes.find_method(value.cls, "__getitem__")
            if method is not None:
                return calls.call(run.interpreter, classes.bind(method[0], value, method[1]), [index], {}, node)
        return records.item(run, value, index, node)
    if isinstance(value, Opaque):
        key = constant(index)
        if isinstance(key, (str, int)) and ("item", key) in value.store:
            stored: Value = value.store[("item", key)]
            return stored
        return Opaque(marks=value.marks)
    return unknown()


def item_set(run: Run, target: Value, index: Value, value: Value, node: Any) -> None:
    if isinstance(target, Instance) and modules.short(target.cls) in modules.CONTAINERS:
        key = constant(index)
        names = [k for k in target.store if isinstance(k, str) and not k.startswith("\0")]
        put = run.interpreter.heap.put
        if isinstance(key, int) and "\0open" not in target.store and -len(names) <= key < len(names):
            put(target.store, names[key], value)
        else:
            for name in names:
                put(target.store, name, join(target.store[name], value))
    elif isinstance(target, Opaque):
        key = constant(index)
        if isinstance(key, (str, int)):
            run.interpreter.heap.put(target.store, ("item", key), value)
    elif isinstance(target, Tensor):
        run.bus.tell(Op(run, "__setitem__", [target, index, value], {}, [target, value], target, node))


def children(run: Run, value: Instance) -> list[Value] | None:
    """The items of a module container that are all known."""
    kind = modules.short(value.cls) or (modules.library_kind(run, value) if isinstance(value.cls, Class) else "")
    if kind in ("Sequential", "ModuleList", "ParameterList") and "\0open" not in value.store:
        found = modules.members(value)
        return found if len(found) <= 32 else None
    return records.items(value)


def element(run: Run, value: Value) -> Value:
    if isinstance(value, (Tensor, Param)):
        tensor = operands.as_tensor(run, value)
        return replace(tensor, zero_dim=False) if isinstance(tensor, Tensor) else unknown()
    if isinstance(value, Instance):
        children = modules.members(value) if modules.short(value.cls) in modules.CONTAINERS else []
        children = records.items(value) or children
        return choice(children) if children else unknown()
    if isinstance(value, Dict):
        keys = [k for k in value.store if k != ANY]
        return choice(Const(k) for k in keys) if keys and ANY not in value.store else objects.any_key(value)
    if isinstance(value, Opaque):
        return Opaque(marks=value.marks)
    return unknown()
