"""What a method call does, by the kind of object it is called on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind
from precaudit.static import nodes as cst
from precaudit.static import overlays
from precaudit.static.language import calls, classes, folding, objects
from precaudit.static.language.values import (
    ANY,
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
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays import records
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import (
    backward,
    functions,
    modules,
    opaque,
    operands,
    opnames,
    ops,
    optimizers,
    rebinding,
    regions,
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
    if isinstance(receiver, Scaler):
        return scaling.scaler_method(run, receiver, name, args, node)
    if isinstance(receiver, Optimizer):
        return _optimizer_method(run, receiver, name, args, kwargs, node)
    if name.startswith("super."):
        return _super_method(run, receiver, name[6:], args, kwargs, node)
    if isinstance(receiver, Param):
        return _param_method(run, receiver, name, args, kwargs, node)
    if isinstance(receiver, Tensor):
        return _tensor_method(run, receiver, name, args, kwargs, node)
    if isinstance(receiver, Instance):
        of_library = overlays.methods().get(receiver.library)
        if of_library is not None:
            return of_library(run, receiver, name, args, kwargs, node)
        if receiver.library == "contextlib.ExitStack" and name == "enter_context" and args:
            return regions.enter_context(run, args[0], node)
        of_any = overlays.of_unknown().get(name) if modules.is_module(run, receiver) else None
        if of_any is not None and classes.find_method(receiver.cls, name) is None:
            return of_any(run, receiver, name, args, kwargs, node)
        if modules.is_module(run, receiver) or name in ("half", "bfloat16"):
            found = modules.method(run, receiver, name, args, kwargs, node)
            if found is not None:
                return found
        elif "param_groups" in receiver.store:
            return _optimizer_method(run, receiver, name, args, kwargs, node)
        record = records.method(run, receiver, name, args, kwargs, node)
        return opaque.result(run, [*args, *kwargs.values()], node) if record is None else record
    if isinstance(receiver, Class) and name == "apply" and run.interpreter.library.is_autograd_function(receiver):
        return functions.applied(run, receiver, args, node)
    if isinstance(receiver, Opaque):
        return _opaque_method(run, receiver, name, args, kwargs, node)
    if isinstance(receiver, (Seq, Dict)):
        return _container_method(run, receiver, name, args, kwargs, node)
    if isinstance(receiver, Const):
        return _constant_method(run, receiver, name, args)
    if isinstance(receiver, StateDict):
        return unknown()
    if isinstance(receiver, Ref):
        return overlays.meaning(dotted := f"{receiver.name}.{name}")(run, dotted, args, kwargs, node)
    return opaque.result(run, [*args, *kwargs.values()], node)


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
        scaling.gradients_cleared(run)
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
        scaling.clip(run, [unknown(), *args], {}, node)
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
    if name == "backward":
        handed = bool(args or "gradient" in kwargs)
        (backward.from_gradient if handed else backward.backward)(run, receiver, node)
        return unknown()
    if name == "scale" and len(args) == 1:
        run.training.saw_scaler = True
        marks = operands.marks_of([operands.as_tensor(run, args[0])])
        return Opaque(marks=marks | {"scaled", f"scaler:{id(receiver.store)}"})
    if name in ("unscale_", "update") and run.training.saw_scaler:
        if name == "unscale_":
            run.interpreter.set_paths(s | {("unscaled", id(receiver.store), 0)} for s in run.interpreter.paths)
        return unknown()
    if name == "step" or (name.endswith("_") and "gradient" in operands.marks_of([*args, *kwargs.values()])):
        run.training.updated = True
    if name == "step" and args and not isinstance(args[0], Function):
        return _opaque_scaler_step(run, receiver, args, node)
    if name in ("clip_grad_norm_", "clip_grad_value_"):
        return unknown()
    if name == "autocast":
        return unknown("context")
    if name in PLAIN_CONTEXTS:
        return Context("null")
    of_any = overlays.of_unknown().get(name)
    if of_any is not None:
        return of_any(run, receiver, name, args, kwargs, node)
    found = modules.method(run, receiver, name, args, kwargs, node)
    if found is not None:
        return found
    if name in opnames.NUMBERS:
        return Number()
    if name in opnames.CASTS:
        return Tensor(frozenset({opnames.CASTS[name]}), run.spot(node), "cast", receiver.marks)
    if receiver.dtype is not None:
        tensor = operands.as_tensor(run, receiver)
        if isinstance(tensor, Tensor):
            return _tensor_method(run, tensor, name, args, kwargs, node)
    if name in COMPUTING:
        return ops.apply(run, name, [receiver, *args], kwargs, node, receiver)
    for value in (*args, *kwargs.values()):
        modules.escape(run, value)
    return opaque.result(run, [receiver, *args, *kwargs.values()], node)


def _opaque_scaler_step(run: Run, receiver: Opaque, args: list[Value], node: Any) -> Value:
    key = id(receiver.store)
    states = run.interpreter.paths
    for event in [e for s in states for e in s if e[0] == "clipped" and e[1] == key]:
        run.facts.add(Kind.CLIP, run.known_spot(event[2]), scaled=True)
    if any(e[0] == "pending" and e[1] == key for s in states for e in s):
        run.interpreter.set_paths(
            frozenset(e for e in s if not (e[0] in ("pending", "clipped", "unscaled") and e[1] == key)) for s in states
        )
    for option in options(args[0]):
        if isinstance(option, Optimizer):
            optimizers.stepped(run, option, node)
    return unknown()


def _container_method(
    run: Run, receiver: Seq | Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    put = run.interpreter.heap.put
    if isinstance(receiver, Seq):
        if name in ("append", "add") and args:
            put(receiver.store, "items", (*receiver.items[:64], args[0]))
            if run.interpreter.loops:
                put(receiver.store, "open", True)
            return NONE
        if name == "extend" and args:
            items = objects.concrete(run.interpreter, args[0])
            put(
                receiver.store,
                "items",
                (*receiver.items[:64], *(items or [objects.element(run.interpreter, args[0])])),
            )
            if items is None:
                put(receiver.store, "open", True)
            return NONE
        if name == "copy":
            return seq(receiver.items, receiver.kind, receiver.open)
        if name == "pop":
            return objects.element(run.interpreter, receiver)
        return unknown()
    return _dict_method(run, receiver, name, args, kwargs, node)


def _dict_method(run: Run, receiver: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    store = receiver.store
    known = {k: v for k, v in store.items() if not (isinstance(k, str) and k.startswith("\0m"))}
    if name == "items":
        pairs = [seq([objects.any_key(receiver) if k == ANY else Const(k), v], "tuple") for k, v in known.items()]
        return seq(pairs, "iterator", open=ANY in store)
    if name == "values":
        return seq(known.values(), "iterator", open=ANY in store)
    if name == "keys":
        return seq([objects.any_key(receiver) if k == ANY else Const(k) for k in known], "iterator", open=ANY in store)
    if name in ("get", "setdefault", "pop") and args:
        key = constant(args[0])
        if isinstance(args[0], Const) and key in store:
            found: Value = store[key]
            return found
        default = args[1] if len(args) > 1 else NONE
        if name == "setdefault" and isinstance(args[0], Const):
            objects.set_item(run.interpreter, receiver, args[0], default, node)
            return default
        if isinstance(args[0], Choice):
            return choice(_dict_method(run, receiver, name, [o, *args[1:]], {}, node) for o in args[0].options)
        if isinstance(args[0], Const) and ANY not in store:
            return default
        return choice([*store.values(), default]) if store and not isinstance(args[0], Const) else unknown()
    if name == "update":
        for value in args:
            if isinstance(value, Dict):
                for key, item in value.store.items():
                    objects.set_item(run.interpreter, receiver, unknown() if key == ANY else Const(key), item, node)
            else:
                objects.set_item(run.interpreter, receiver, unknown(), unknown(), node)
        for key, item in kwargs.items():
            objects.set_item(run.interpreter, receiver, Const(key), item, node)
        return NONE
    if name == "copy":
        return Dict(dict(store), receiver.kind)
    return unknown()


OF_STRINGS = frozenset(
    """
    lower upper title casefold strip lstrip rstrip split rsplit replace removeprefix removesuffix startswith endswith
    """.split()
)
"""Methods of a string that give the same each time."""


def _constant_method(run: Run, receiver: Const, name: str, args: list[Value]) -> Value:
    value = receiver.value
    if isinstance(value, str) and name in OF_STRINGS and all(isinstance(a, Const) for a in args):
        try:
            result = getattr(value, name)(*(constant(a) for a in args))
        except (TypeError, ValueError):
            return unknown("string")
        return seq([Const(r) for r in result]) if isinstance(result, list) else folding.known(result)
    return unknown("string") if isinstance(value, str) else unknown()
