"""What a method call does, by the kind of object it is called on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static import overlays
from precaudit.static.language import calls, classes, objects
from precaudit.static.language.values import (
    NONE,
    Choice,
    Class,
    Const,
    Context,
    Dict,
    Function,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Param,
    Ref,
    Scaler,
    Seq,
    StateDict,
    Tensor,
    Value,
    choice,
    constant,
    is_float,
    options,
    truth,
    unknown,
)
from precaudit.static.overlays import containers, records
from precaudit.static.overlays.events import Op, tell
from precaudit.static.overlays.torch import (
    backward,
    module_methods,
    modules,
    opaque,
    operands,
    opnames,
    ops,
    optimizers,
    rebinding,
    scaling,
    updates,
)

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

PLAIN_CONTEXTS = {"no_sync", "profile", "record_function", "open", "tqdm", "timeit", "torch_distributed_zero_first"}


def call_method(run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library method on a value."""
    if isinstance(receiver, Choice):
        return choice(call_method(run, option, name, args, kwargs, node) for option in receiver.options)
    if not isinstance(receiver, (Seq, Dict, Const, StateDict)):
        args, kwargs = operands.in_front(operands.OF_METHODS, args, kwargs)
    if name.startswith("super.") and not isinstance(receiver, (Scaler, Optimizer)):
        return _super_method(run, receiver, name[6:], args, kwargs, node)
    act = _BY_KIND.get(type(receiver))
    return act(run, receiver, name, args, kwargs, node) if act else opaque.result(run, [*args, *kwargs.values()], node)


def _instance_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A method that the object's own class lacks: its library's, a module's, an optimizer's, a record's."""
    of_library = overlays.methods().get(receiver.library)
    if of_library is not None:
        return of_library(run, receiver, name, args, kwargs, node)
    is_module = modules.is_module(run, receiver)
    of_any = overlays.of_unknown().get(name) if is_module else None
    if of_any is not None and classes.find_method(receiver.cls, name) is None:
        return of_any(run, receiver, name, args, kwargs, node)
    if is_module or name in ("half", "bfloat16"):
        found = module_methods.method(run, receiver, name, args, kwargs, node)
        if found is not None:
            return found
    elif "param_groups" in receiver.store:
        return _optimizer_method(run, receiver, name, args, kwargs, node)
    record = records.method(run, receiver, name, args, kwargs, node)
    return opaque.result(run, [*args, *kwargs.values()], node) if record is None else record


def _class_method(
    run: Run, receiver: Class, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if name == "apply" and run.interpreter.library.is_autograd_function(receiver):
        given = [operands.as_tensor(run, value) for value in args]
        tell(run, "autograd.Function", [receiver, *given], node)
        return unknown(*(operands.marks_of(given) & operands.KEPT))
    return opaque.result(run, [*args, *kwargs.values()], node)


def _function(run: Run, receiver: Ref, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A name in an imported module or class."""
    return overlays.meaning(dotted := f"{receiver.name}.{name}")(run, dotted, args, kwargs, node)


def _constant_method(
    run: Run, receiver: Const, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    return containers.of_constant(receiver, name, args)


def _entries(run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return unknown()


def _optimizer_method(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if name == "step":
        if args and isinstance(args[0], Function):
            calls.call(run.interpreter, args[0], [], {}, node)
        optimizers.step(run, receiver, node)
        return unknown()
    if name == "state_dict":
        return optimizers.state_dict(receiver)
    if name == "add_param_group" and isinstance(receiver, Optimizer) and args:
        added = tuple(optimizers.collect(run, args[0]))
        run.interpreter.heap.put(receiver.store, "params", receiver.store["params"] + added)
        return NONE
    if name == "zero_grad":
        scaling.gradients_cleared(run, node)
    return unknown()


def _super_method(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if name == "__init__" and isinstance(receiver, Instance):
        run.interpreter.library.init_library_base(receiver, args, kwargs, node)
        return NONE
    if name == "forward" and isinstance(receiver, Instance):
        return run.interpreter.library.call_unknown_module(receiver, args, kwargs, node)
    if name in ("__setattr__",) and isinstance(receiver, Instance) and len(args) == 2:
        key = constant(args[0])
        if isinstance(key, str):
            run.interpreter.heap.put(receiver.store, key, args[1])
        return NONE
    return call_method(run, receiver, name, args, kwargs, node)


def _param_method(
    run: Run, receiver: Param, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if name == "requires_grad_":
        modules.set_trainable(run, receiver, truth(args[0]) if args else True)
        return receiver
    if name == "copy_":
        updates.update(run, receiver, args, node, "copy", True)
        return receiver
    if name.endswith("_") and not name.startswith("_"):
        updates.update(run, receiver, [*args, *kwargs.values()], node, name.rstrip("_"), True)
        tensor = operands.as_tensor(run, receiver)
        values = [operands.as_tensor(run, a) for a in args]
        run.bus.tell(Op(run, name, [tensor, *values], kwargs, [tensor, *values], tensor, node))
        return receiver
    if name == "register_post_accumulate_grad_hook" and args and isinstance(args[0], Function):
        calls.call(run.interpreter, args[0], [receiver], {}, node)  # as each backward pass will
        run.training.hooked = True
    if name in ("register_hook", "register_post_accumulate_grad_hook"):
        return unknown()
    return _tensor_method(run, operands.as_tensor(run, receiver), name, args, kwargs, node)


def _tensor_method(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if not isinstance(receiver, Tensor):
        return unknown()
    if name == "backward":
        handed = bool(args or "gradient" in kwargs) and not (receiver.zero_dim and "loss" in receiver.marks)
        (backward.from_gradient if handed else backward.backward)(run, receiver, node)
        return NONE
    if name == "item":
        run.bus.tell(Op(run, "item", [receiver], {}, [receiver], Number(), node))
        return Number()
    if name == "is_floating_point" and receiver.dtype is not None:
        return Const(is_float(receiver.dtype))
    if name == "requires_grad_":
        on = truth(args[0]) if args else True
        return replace(
            receiver, marks=receiver.marks | {"differentiable"} if on else receiver.marks - {"differentiable"}
        )
    if name == "copy_":
        source = operands.as_tensor(run, args[0]) if args else unknown()
        if "gradient" in receiver.marks:
            scaling.gradient_replaced(run, source, node)
        updates.update(run, receiver, [source], node, "copy", True)
        return replace(receiver, marks=receiver.marks | (operands.marks_of([source]) & operands.KEPT))
    if name.endswith("_") and not name.startswith("_") and name not in opnames.VIEWS:
        return _in_place(run, receiver, name.rstrip("_"), args, kwargs, node)
    return ops.apply(run, name, [receiver, *args], kwargs, node, receiver)


def _in_place(run: Run, receiver: Tensor, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if "gradient" in receiver.marks and name in ("mul", "div", "clamp"):
        _gradient_changed(run, name, args, node)
    called = isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute)
    attribute = called and rebinding.outlives_its_loop(run, node.func.value)
    if name in ("add", "sub", "lerp", "addcmul", "addcdiv"):
        updates.update(run, receiver, args, node, name, attribute)
    values = [operands.as_tensor(run, a) for a in args]
    after = replace(_after(receiver, name))
    run.bus.tell(Op(run, f"{name}_", [receiver, *values], kwargs, [receiver, *values], after, node))
    changed = after.marks is not receiver.marks or after.notes is not receiver.notes
    if changed and called and isinstance(node.func.value, (cst.Name, cst.Subscript)):
        objects.assign(run.interpreter, node.func.value, after)
    return replace(after, marks=after.marks | (operands.marks_of(values) & operands.KEPT))


def _after(tensor: Tensor, name: str) -> Tensor:
    """What a tensor is once it was changed in place, and stays under its name."""
    if name == "mul":
        return replace(tensor, marks=tensor.marks | {"decayed"})
    if name in ("zero", "fill") and "decayed" in tensor.marks:
        return replace(tensor, marks=tensor.marks - {"decayed"})
    return tensor


def _gradient_changed(run: Run, name: str, args: list[Value], node: Any) -> None:
    """Gradients are clamped or multiplied by something of their own size: clipped; by anything else: unscaled."""
    factor = operands.marks_of([operands.as_tensor(run, a) for a in args])
    if name == "clamp" or (name == "mul" and "gradient" in factor and not factor & {"unscaled", "ratio"}):
        scaling.clipped(run, args[0] if args else None, node)
    else:
        scaling.gradient_written(run, node)


COMPUTING = (
    opnames.VIEWS
    | opnames.SAME
    | opnames.MATMULS
    | set(opnames.POINTWISE)
    | opnames.PREDICATES
    | opnames.INTEGER_RESULTS
)
"""Methods that only a tensor has."""


def _opaque_method(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A method of something unknown: of a loss, a scaler, an optimizer, a module, a tensor, by its name."""
    if name == "step" or (name.endswith("_") and "gradient" in operands.marks_of([*args, *kwargs.values()])):
        run.training.updated = True
    for asked in (_OF_TRAINING.get(name), overlays.of_unknown().get(name), module_methods.method, _tensors_method):
        found = asked(run, receiver, name, args, kwargs, node) if asked is not None else None
        if found is not None:
            return found
    for value in (*args, *kwargs.values()):
        modules.escape(run, value)
    return opaque.result(run, [receiver, *args, *kwargs.values()], node)


def _tensors_method(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """A method that only a tensor has, or any of something that is one."""
    if name in opnames.NUMBERS:
        return Number()
    if name in opnames.CASTS:
        return Tensor(frozenset({opnames.CASTS[name]}), run.spot(node), "cast", receiver.marks)
    tensor = operands.as_tensor(run, receiver)
    if receiver.dtype is not None and isinstance(tensor, Tensor):
        return _tensor_method(run, tensor, name, args, kwargs, node)
    return ops.apply(run, name, [receiver, *args], kwargs, node, receiver) if name in COMPUTING else None


def _opaque_backward(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    handed = bool(args or "gradient" in kwargs)
    (backward.from_gradient if handed else backward.backward)(run, receiver, node)
    return unknown()


def _opaque_scale(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """`scaler.scale(loss)`, which is what anything with a method `scale` of one argument is taken for."""
    if len(args) != 1:
        return None
    run.training.saw_scaler = True
    marks = operands.marks_of([operands.as_tensor(run, args[0])])
    return scaling.scaled(Opaque(marks=marks), receiver)


def _opaque_unscale(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """`scaler.unscale_(optimizer)` and `scaler.update()`, once something was scaled."""
    if not run.training.saw_scaler:
        return None
    if name == "unscale_":
        tell(run, "scaler.unscale_", [receiver, args[0] if args else unknown()], node)
    return unknown()


def _opaque_step(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """`scaler.step(optimizer)`; an optimizer is given a closure or nothing."""
    if not args or isinstance(args[0], Function):
        return None
    tell(run, "scaler.step", [receiver, args[0]], node)
    for option in options(args[0]):
        if isinstance(option, Optimizer):
            optimizers.stepped(run, option, node)
    return unknown()


def _plain_context(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    return Context("null")


def _maybe_autocast(
    run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    return unknown("context")


def _clipped(run: Run, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A framework's own clipping, which knows of its scaler."""
    return unknown()


_OF_TRAINING: dict[str, Callable[..., Value | None]] = {
    "backward": _opaque_backward,
    "scale": _opaque_scale,
    "unscale_": _opaque_unscale,
    "update": _opaque_unscale,
    "step": _opaque_step,
    "clip_grad_norm_": _clipped,
    "clip_grad_value_": _clipped,
    "autocast": _maybe_autocast,
    **dict.fromkeys(PLAIN_CONTEXTS, _plain_context),
}
"""Method of something unknown -> what it does where the thing is a loss, a scaler or a trainer."""

_BY_KIND: dict[type, Callable[..., Value]] = {
    Scaler: scaling.scaler_method,
    Optimizer: _optimizer_method,
    Param: _param_method,
    Tensor: _tensor_method,
    Instance: _instance_method,
    Class: _class_method,
    Opaque: _opaque_method,
    Seq: containers.method,
    Dict: containers.method,
    Const: _constant_method,
    StateDict: _entries,
    Ref: _function,
}
"""Kind of value -> what its methods do."""
