"""The meaning of library calls: what torch's API, the standard library and opaque objects do to abstract values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import libcst as cst

from precaudit.model.vocabulary import FLOATING, Kind
from precaudit.static import configs, modules, ops
from precaudit.static.autocast import table
from precaudit.static.facts import Facts
from precaudit.static.heap import MISSING
from precaudit.static.interpreter import Interpreter
from precaudit.static.training import Training
from precaudit.static.values import (
    ANY,
    NONE,
    Autocast,
    Bound,
    Choice,
    Class,
    Const,
    Context,
    Device,
    Dict,
    DType,
    Dtypes,
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
    StateDict,
    Tensor,
    Value,
    choice,
    constant,
    join,
    options,
    seq,
    truth,
    unknown,
)

AUTOCAST = {
    "torch.autocast",
    "torch.amp.autocast",
    "torch.amp.autocast_mode.autocast",
    "torch.cuda.amp.autocast",
    "torch.cuda.amp.autocast_mode.autocast",
    "torch.cpu.amp.autocast",
}
SCALERS = {
    "torch.amp.GradScaler",
    "torch.amp.grad_scaler.GradScaler",
    "torch.cuda.amp.GradScaler",
    "torch.cuda.amp.grad_scaler.GradScaler",
    "torch.cpu.amp.GradScaler",
    "torch.GradScaler",
    "torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler",
}
DEPRECATED = {
    "torch.cuda.amp.autocast": 'torch.amp.autocast("cuda", ...)',
    "torch.cuda.amp.GradScaler": 'torch.amp.GradScaler("cuda", ...)',
    "torch.cpu.amp.autocast": 'torch.amp.autocast("cpu", ...)',
    "torch.cpu.amp.GradScaler": 'torch.amp.GradScaler("cpu", ...)',
}
NO_GRAD = {"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.grad_mode.no_grad"}
ENABLE_GRAD = {"torch.enable_grad", "torch.autograd.enable_grad"}
WRAPPERS = {
    "DistributedDataParallel",
    "DataParallel",
    "FullyShardedDataParallel",
    "compile",
    "fully_shard",
    "checkpoint_wrapper",
    "script",
    "convert_sync_batchnorm",
    "FullyShardedDataParallelWrapper",
}
"""Torch callables that give back the model they were given, as far as dtypes go."""
HARMLESS = (
    "torch.",
    "builtins.",
    "math.",
    "os.",
    "copy.",
    "wandb.",
    "logging.",
    "time.",
    "sys.",
    "json.",
    "random.",
    "numpy.",
)
"""Libraries that do not change the dtype of a model handed to them."""
PLAIN_CONTEXTS = {"no_sync", "profile", "record_function", "open", "tqdm", "timeit", "torch_distributed_zero_first"}


class Torch:
    """Gives the interpreter the meaning of everything that is not defined in the code under check."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.training = Training(self)
        self.interpreter: Interpreter = Interpreter(self)
        self.outside_scaling = False
        self._nodes: dict[int, Spot] = {}
        self._float16_region: Spot | None = None
        self.loss_built: Spot | None = None
        """Where the loss module that is being called was built."""

    # ---- where we are

    def spot(self, node: Any) -> Spot:
        return self.interpreter.spot(node)

    def remember(self, node: Any) -> None:
        """Keeps the place of a node that an event names by identity."""
        self._nodes.setdefault(id(node), self.spot(node))

    def known_spot(self, identity: int) -> Spot:
        return self._nodes[identity]

    def grad(self) -> bool:
        return self.interpreter.grad_enabled()

    def loops(self) -> tuple[int, ...]:
        return self.interpreter.loops

    def autocast(self) -> Autocast | None:
        return self.interpreter.autocast()

    def disabled_region(self) -> Autocast | None:
        region = self.autocast()
        return region if region is not None and region.enabled is False else None

    def outside_region(self, tensor: Tensor, region: Autocast) -> bool:
        """Whether the tensor was not cast low on purpose inside the region."""
        return tensor.op not in ("cast", "parameter")

    def in_forward(self) -> bool:
        return (
            self.interpreter.inside("forward")
            or self.interpreter.inside("__call__")
            or bool(
                [
                    f
                    for f in self.interpreter.frames
                    if f.function is not None and "norm" in f.function.name.value.lower()
                ]
            )
        )

    def float16_region(self) -> Spot | None:
        return self._float16_region

    def default_dtype(self) -> Dtypes | None:
        found: Dtypes | None = self.interpreter.world.get("default_dtype", frozenset({"float32"}))
        return found

    # ---- names

    def reference(self, name: str, spot: Spot) -> Value:
        """An attribute of an imported module."""
        front, _, last = name.rpartition(".")
        if front == "torch":
            if last in ops.DTYPE_NAMES:
                return DType(frozenset({ops.DTYPE_NAMES[last]}), spot)
            if last in ("inf", "nan", "pi", "e"):
                return Const(getattr(math, last))
        if front in ("math", "numpy") and last in ("inf", "nan", "pi", "e"):
            return Const(getattr(math, last))
        return Ref(name)

    # ---- statements that the interpreter asks about

    def augmented(self, op: str, target: Value, value: Value, node: Any) -> Value:
        """`target op= value`."""
        attribute = isinstance(node.target, (cst.Attribute, cst.Subscript))
        short = {"Add": "add", "Subtract": "sub", "Multiply": "mul", "Divide": "div"}.get(op, op)
        tensor = ops.as_tensor(self, target)
        if isinstance(target, Param):
            self.training.accumulate(target, [value], node, short, attribute)
            return target
        if isinstance(tensor, Tensor):
            if "gradient" in tensor.marks:
                self.training.gradient_written(node)
            self.training.accumulate(tensor, [value], node, short, attribute)
            result = ops.binary(self, op, tensor, value, node)
            if isinstance(result, Tensor):
                return replace(tensor, marks=tensor.marks | result.marks)
            return replace(tensor, marks=tensor.marks | ops.marks_of([result]))
        return self.interpreter.binary(op, target, value, node)

    def rebinding(self, target: Any, expression: Any, value: Value) -> Value:
        """`x = f(x)`: an update of x from itself, when x stands as a term on the right; it stays the same storage."""
        tensor = ops.as_tensor(self, value)
        if not isinstance(tensor, Tensor) or not tensor.low:
            return value
        terms = _terms(expression)
        mine = [t for t in terms if _same_expression(t, target)]
        if not mine or len(terms) < 2:
            return value
        before = ops.as_tensor(self, self.interpreter.eval(target))
        if not isinstance(before, Tensor) or not before.low:
            return value
        others = [self.interpreter.eval(t) for t in terms if t not in mine]
        attribute = isinstance(target, (cst.Attribute, cst.Subscript))
        if self.in_forward() and isinstance(target, cst.Name) and self.loops() and _recurs(expression, target):
            self.training.recurrence(tensor, expression)
            return value
        self.training.accumulate(before, others, expression, "add", attribute)
        kept = before.marks & {"created", "weights"}
        if not kept:
            return value
        return replace(tensor, spot=before.spot, origin=before.origin, loops=before.loops, marks=tensor.marks | kept)

    def rebuilding(self, expression: Any, names: frozenset[str], value: Value) -> Value:
        """An item of a list that is rebuilt from its older self."""
        for term in _terms(expression):
            if isinstance(term, cst.Name) and term.value in names:
                before = ops.as_tensor(self, self.interpreter.eval(term))
                if isinstance(before, Tensor) and before.low and before.marks & {"created", "weights"}:
                    return self.rebinding(term, expression, value)
        return value

    def function_context(self, function: Function) -> Any:
        """What a function's decorators do around its body."""
        for decorator in function.decorators:
            if isinstance(decorator, Ref):
                if decorator.name in ("contextlib.contextmanager", "contextmanager"):
                    return "contextmanager"
                if decorator.name in NO_GRAD:
                    return Context("no_grad")
            if isinstance(decorator, Choice):
                decorator = decorator.options[0]
            if isinstance(decorator, (Autocast, Context)):
                return decorator
        return None

    def is_autograd_function(self, cls: Class) -> bool:
        return any(b.endswith("autograd.Function") for b in self.interpreter.library_bases(cls))

    # ---- objects of classes under check

    def init_library_base(self, instance: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """What the imported base class's __init__ leaves on the object."""
        if self.training.is_optimizer_class(instance.cls):
            self.training.init_optimizer(instance, args, kwargs)
            return
        kind = modules.library_kind(self, instance)
        if kind:
            made: dict[Any, Any] = {}
            modules.build(self, kind, args, kwargs, node, made)
            for name, value in made.items():
                self.interpreter.heap.put(instance.store, name, value)

    def call_unknown_module(self, target: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        kind = modules.library_kind(self, target)
        if kind and kind != "Module":
            return modules.call_library(self, target, kind, args, kwargs, node)
        return self._opaque_result([*args, *kwargs.values()], node)

    def run_step(self, instance: Instance, node: Any) -> None:
        """Runs the step method of a hand-written optimizer that a GradScaler steps."""
        method = self.interpreter.find_method(instance.cls, "step")
        if method is not None:
            self.interpreter.call(self.interpreter.bind(method[0], instance, method[1]), [], {}, node)

    # ---- calls

    def call(self, function: Value, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if isinstance(function, Ref):
            return self.call_reference(function.name, args, kwargs, node)
        if isinstance(function, Bound):
            return self.call_method(function.receiver, function.name, args, kwargs, node)
        if isinstance(function, Instance):
            if function.library == "functools.partial":
                held = function.store
                merged = {**held["\0kwargs"].store, **kwargs}
                return self.interpreter.call(held["\0call"], [*held["\0args"].items, *args], merged, node)
            kind = modules.short(function.cls)
            if kind:
                return modules.call_library(self, function, kind, args, kwargs, node)
        if isinstance(function, Opaque):
            for value in (*args, *kwargs.values()):
                modules.escape(self, value)
            return self._opaque_result([function, *args, *kwargs.values()], node)
        return self._opaque_result([*args, *kwargs.values()], node)

    def _opaque_result(self, values: list[Value], node: Any) -> Value:
        marks = ops.marks_of([ops.as_tensor(self, v) for v in values]) & (
            ops.KEPT - {"weights", "gradient", "positions", "counts"}
        )
        region = self.autocast()
        if not self.grad():
            marks -= {"float16", "bfloat16", "differentiable"}
        elif region is not None and region.enabled is True and region.dtype is not None and len(region.dtype) == 1:
            low = region.dtype & {"float16", "bfloat16"}
            marks |= low
            if low == {"float16"}:
                self._float16_region = region.spot
        if any(isinstance(v, Scaler) for v in values):
            self.outside_scaling = True
        return Opaque(marks=marks)

    def call_reference(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """A call of an imported function or class."""
        found = CALLS.get(name)
        if found is not None:
            return found(self, name, args, kwargs, node)
        front, _, last = name.rpartition(".")
        if name in AUTOCAST:
            return self.autocast_region(name, args, kwargs, node)
        if name in SCALERS:
            self.deprecated(name, node)
            return self.training.scaler(name, args, kwargs, node)
        if front == "builtins":
            return self._builtin(last, args, kwargs, node)
        if name.startswith("torch.optim.") and last[:1].isupper() and "lr_scheduler" not in name and "swa" not in name:
            return self.training.optimizer(name, args, kwargs, node)
        if last in ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"):
            self.training.clip(args, kwargs, node)
            return Tensor(frozenset({"float32"}), self.spot(node), "norm", zero_dim=True)
        if name.startswith("torch."):
            return self._torch_call(name, front, last, args, kwargs, node)
        if name.startswith("math."):
            return self._math(last, args)
        if last == "from_pretrained":
            return _from_pretrained(self, args, kwargs, node)
        if not name.startswith(HARMLESS):
            for value in (*args, *kwargs.values()):
                modules.escape(self, value)
        return self._opaque_result([*args, *kwargs.values()], node)

    def _torch_call(
        self, name: str, front: str, last: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if last in WRAPPERS and args:
            return args[0]
        if last in WRAPPERS and "module" in kwargs:
            return kwargs["module"]
        if front == "torch.distributed":
            self.training.reduced(last, args, kwargs, node)
            return unknown()
        if name.startswith("torch.nn.init."):
            return args[0] if args else unknown()
        if last in ("MixedPrecision", "MixedPrecisionPolicy"):
            self.training.mixed_precision(last, args, kwargs, node)
            return unknown()
        if front.startswith("torch.nn") and last[:1].isupper():
            return self._library_object(name, last, args, kwargs, node)
        if front in ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.functional"):
            short = {"vector_norm": "norm", "matrix_norm": "norm"}.get(last, last)
            self._escape_inplace(short, args, node)
            return ops.apply(self, short.rstrip("_") if short.endswith("_") else short, args, kwargs, node)
        return unknown(*(ops.marks_of(args) & ops.KEPT))

    def _escape_inplace(self, name: str, args: list[Value], node: Any) -> None:
        """`torch._foreach_add_(targets, others)` and its kin change each target in place."""
        if not name.startswith("_foreach") or not name.endswith("_") or not args:
            return
        if "gradient" in ops.marks_of(args[:1]):
            self.training.gradient_written(node)
        short = name.removeprefix("_foreach_").rstrip("_")
        others = [self.interpreter.element(a) if isinstance(a, Seq) else a for a in args[1:]]
        if short in ("add", "sub", "lerp", "addcmul", "addcdiv", "copy"):
            for target in options(self.interpreter.element(args[0])):
                self.training.accumulate(target, others, node, short, True)

    def _library_object(self, name: str, last: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if last == "Parameter":
            return self._parameter(args, kwargs, node)
        if last == "Buffer":
            return modules.buffer(ops.as_tensor(self, args[0]) if args else unknown(), "")
        store: dict[Any, Any] = {}
        if last == "Upsample":
            store["\0mode"] = kwargs.get("mode", NONE)
        if "reduction" in kwargs:
            store["\0reduction"] = kwargs["reduction"]
        if last.endswith("Loss"):
            store["\0spot"] = self.spot(node)
        modules.build(self, last, args, kwargs, node, store)
        return Instance(Ref(name), store)

    def _parameter(self, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        data = ops.as_tensor(self, args[0] if args else kwargs.get("data", unknown()))
        wanted = kwargs.get("requires_grad", args[1] if len(args) > 1 else Const(True))
        dtype = data.dtype if isinstance(data, Tensor) else None
        origin = data.origin if isinstance(data, Tensor) else None
        return modules.new_param(dtype, truth(wanted), self.spot(node), origin=origin, fresh=True)

    def autocast_region(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """`torch.autocast(...)` in any of its spellings."""
        self.deprecated(name, node)
        rest = list(args)
        if name.startswith(("torch.cuda.", "torch.cpu.")):
            devices = frozenset({name.split(".")[1]})
            enabled_at, dtype_at = 0, 1
        else:
            given = kwargs.get("device_type", rest[0] if rest else None)
            devices = device_types(given)
            dtype_at, enabled_at = 1, 2
        enabled = kwargs.get("enabled", rest[enabled_at] if len(rest) > enabled_at else Const(True))
        dtype_value = kwargs.get("dtype", rest[dtype_at] if len(rest) > dtype_at else None)
        wanted = ops.dtype_argument(self, dtype_value)
        if wanted is None:
            known = devices & {"cuda", "cpu"}
            dtype: Dtypes | None = frozenset(table(d).default_dtype for d in (known or {"cuda", "cpu"}))
        else:
            dtype = ops.names(wanted)
        if dtype is not None and not dtype <= {"float16", "bfloat16"}:
            dtype = dtype if dtype <= set(FLOATING) else None
        state = truth(enabled)
        if "\0rest" in kwargs:
            dtype, state = None, None
        region = Autocast(devices, dtype, state, self.spot(node), wanted is not None)
        if state is not False and dtype == frozenset({"float16"}):
            self._float16_region = region.spot
            if wanted is not None and self.training.saw_scaler and region.spot is not None:
                self.facts.add(Kind.AUTOCAST, region.spot, dtype, enabled=True, prefer="bfloat16")
        return region

    def deprecated(self, name: str, node: Any) -> None:
        """torch.cuda.amp.*: reported unless the code asks for the version or catches the failure first."""
        if name in DEPRECATED and not self.interpreter.guarded():
            self.facts.add(
                Kind.CALL, self.spot(node), "", None, None, f"use {DEPRECATED[name]}", api=name, deprecated=True
            )

    # ---- methods

    def call_method(self, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        """A library method on a value."""
        if isinstance(receiver, Choice):
            return choice(self.call_method(option, name, args, kwargs, node) for option in receiver.options)
        if isinstance(receiver, Scaler):
            return self.training.scaler_method(receiver, name, args, node)
        if isinstance(receiver, Optimizer):
            return self._optimizer_method(receiver, name, args, kwargs, node)
        if name.startswith("super."):
            return self._super_method(receiver, name[6:], args, kwargs, node)
        if isinstance(receiver, Param):
            return self._param_method(receiver, name, args, kwargs, node)
        if isinstance(receiver, Tensor):
            return self._tensor_method(receiver, name, args, kwargs, node)
        if isinstance(receiver, Instance):
            if modules.is_module(self, receiver) or name in ("half", "bfloat16"):
                found = modules.method(self, receiver, name, args, kwargs, node)
                if found is not None:
                    return found
            elif "param_groups" in receiver.store:
                return self._optimizer_method(receiver, name, args, kwargs, node)
            return self._opaque_result([*args, *kwargs.values()], node)
        if isinstance(receiver, Opaque):
            return self._opaque_method(receiver, name, args, kwargs, node)
        if isinstance(receiver, (Seq, Dict)):
            return self._container_method(receiver, name, args, kwargs, node)
        if isinstance(receiver, Const):
            return self._constant_method(receiver, name, args)
        if isinstance(receiver, StateDict):
            return unknown()
        if isinstance(receiver, Ref):
            return self.call_reference(f"{receiver.name}.{name}", args, kwargs, node)
        return self._opaque_result([*args, *kwargs.values()], node)

    def _optimizer_method(
        self, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if name == "step":
            if args and isinstance(args[0], Function):
                self.interpreter.call(args[0], [], {}, node)
            self.training.step(receiver, node)
            return unknown()
        if name == "state_dict":
            return StateDict("optimizer")
        if name == "add_param_group" and isinstance(receiver, Optimizer) and args:
            added = tuple(self.training.collect(args[0]))
            self.interpreter.heap.put(receiver.store, "params", receiver.store["params"] + added)
            return NONE
        if name == "zero_grad":
            self.training.gradients_cleared()
        return unknown()

    def _super_method(
        self, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if name == "__init__" and isinstance(receiver, Instance):
            self.init_library_base(receiver, args, kwargs, node)
            return NONE
        if name == "forward" and isinstance(receiver, Instance):
            return self.call_unknown_module(receiver, args, kwargs, node)
        if name in ("__setattr__",) and isinstance(receiver, Instance) and len(args) == 2:
            key = constant(args[0])
            if isinstance(key, str):
                self.interpreter.heap.put(receiver.store, key, args[1])
            return NONE
        return self.call_method(receiver, name, args, kwargs, node)

    def _param_method(
        self, receiver: Param, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if name == "requires_grad_":
            modules.set_trainable(self, receiver, truth(args[0]) if args else True)
            return receiver
        if name == "copy_":
            self.training.accumulate(receiver, args, node, "copy", True)
            return receiver
        if name.endswith("_") and not name.startswith("_"):
            self.training.accumulate(receiver, [*args, *kwargs.values()], node, name.rstrip("_"), True)
            return receiver
        if name in ("register_hook", "register_post_accumulate_grad_hook"):
            return unknown()
        return self._tensor_method(ops.as_tensor(self, receiver), name, args, kwargs, node)

    def _tensor_method(
        self, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if not isinstance(receiver, Tensor):
            return unknown()
        if name == "backward":
            self.training.backward(receiver, node)
            return NONE
        if name == "item":
            return Number()
        if name == "requires_grad_":
            on = truth(args[0]) if args else True
            return replace(
                receiver, marks=receiver.marks | {"differentiable"} if on else receiver.marks - {"differentiable"}
            )
        if name == "copy_":
            source = ops.as_tensor(self, args[0]) if args else unknown()
            return replace(receiver, marks=receiver.marks | (ops.marks_of([source]) & ops.KEPT))
        if name.endswith("_") and not name.startswith("_") and name not in ops.VIEWS:
            return self._in_place(receiver, name.rstrip("_"), args, kwargs, node)
        return ops.apply(self, name, [receiver, *args], kwargs, node, receiver)

    def _in_place(self, receiver: Tensor, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if "gradient" in receiver.marks and name in ("mul", "div", "clamp", "copy"):
            self._gradient_changed(name, args, node)
        attribute = (
            not isinstance(node.func.value, cst.Name)
            if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute)
            else False
        )
        if name in ("add", "sub", "lerp", "addcmul", "addcdiv"):
            self.training.accumulate(receiver, args, node, name, attribute)
        values = [ops.as_tensor(self, a) for a in args]
        if name in ("fill",) and args:
            ops._constant(self, receiver.dtype, args[0], node, "Add")
        if name in ("masked_fill",):
            ops._masked_fill(self, [receiver, *args], kwargs, node)
        marks = receiver.marks | (ops.marks_of(values) & ops.KEPT)
        if name == "mul":
            marks |= {"decayed"}
        return replace(receiver, marks=marks)

    def _gradient_changed(self, name: str, args: list[Value], node: Any) -> None:
        """Gradients are clamped or multiplied by something of their own size: clipped; by anything else: unscaled."""
        factor = ops.marks_of([ops.as_tensor(self, a) for a in args])
        if name == "clamp" or (name == "mul" and "gradient" in factor):
            self.training.clip([unknown(), *args], {}, node)
        else:
            self.training.gradient_written(node)

    def _opaque_method(
        self, receiver: Opaque, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        if name == "backward":
            if not args:
                self.training.backward(receiver, node)
            else:
                self.outside_scaling = True
            return unknown()
        if name == "scale" and len(args) == 1:
            self.training.saw_scaler = True
            marks = ops.marks_of([ops.as_tensor(self, args[0])])
            return Opaque(marks=marks | {"scaled", f"scaler:{id(receiver.store)}"})
        if name in ("unscale_", "update") and self.training.saw_scaler:
            if name == "unscale_":
                self.interpreter.set_paths(s | {("unscaled", id(receiver.store), 0)} for s in self.interpreter.paths)
            return unknown()
        if name == "step" and args and not isinstance(args[0], Function):
            return self._opaque_scaler_step(receiver, args, node)
        if name in ("clip_grad_norm_", "clip_grad_value_"):
            return unknown()
        if name == "autocast":
            return unknown("context")
        if name in PLAIN_CONTEXTS:
            return Context("null")
        found = modules.method(self, receiver, name, args, kwargs, node)
        if found is not None:
            return found
        if name in ops.NUMBERS:
            return Number()
        if name in ops.CASTS:
            return Tensor(frozenset({ops.CASTS[name]}), self.spot(node), "cast", receiver.marks)
        if receiver.dtype is not None:
            tensor = ops.as_tensor(self, receiver)
            if isinstance(tensor, Tensor):
                return self._tensor_method(tensor, name, args, kwargs, node)
        if name in ops.VIEWS | ops.SAME | ops.MATMULS | set(ops.POINTWISE) | ops.PREDICATES | ops.INTEGER_RESULTS:
            return ops.apply(self, name, [receiver, *args], kwargs, node, receiver)
        for value in (*args, *kwargs.values()):
            modules.escape(self, value)
        return self._opaque_result([receiver, *args, *kwargs.values()], node)

    def _opaque_scaler_step(self, receiver: Opaque, args: list[Value], node: Any) -> Value:
        key = id(receiver.store)
        states = self.interpreter.paths
        for event in [e for s in states for e in s if e[0] == "clipped" and e[1] == key]:
            self.facts.add(Kind.CLIP, self.known_spot(event[2]), scaled=True)
        if any(e[0] == "pending" and e[1] == key for s in states for e in s):
            self.interpreter.set_paths(
                frozenset(e for e in s if not (e[0] in ("pending", "clipped", "unscaled") and e[1] == key))
                for s in states
            )
        for option in options(args[0]):
            if isinstance(option, Optimizer):
                self.training.stepped(option, node)
        return unknown()

    # ---- containers, strings and numbers

    def _container_method(
        self, receiver: Seq | Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
    ) -> Value:
        put = self.interpreter.heap.put
        if isinstance(receiver, Seq):
            if name in ("append", "add") and args:
                put(receiver.store, "items", (*receiver.items[:64], args[0]))
                if self.interpreter.loops:
                    put(receiver.store, "open", True)
                return NONE
            if name == "extend" and args:
                items = self.interpreter.concrete(args[0])
                put(receiver.store, "items", (*receiver.items[:64], *(items or [self.interpreter.element(args[0])])))
                if items is None:
                    put(receiver.store, "open", True)
                return NONE
            if name == "copy":
                return seq(receiver.items, receiver.kind, receiver.open)
            if name == "pop":
                return self.interpreter.element(receiver)
            return unknown()
        return self._dict_method(receiver, name, args, kwargs, node)

    def _dict_method(self, receiver: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        store = receiver.store
        known = {k: v for k, v in store.items() if not (isinstance(k, str) and k.startswith("\0m"))}
        if name == "items":
            pairs = [seq([unknown("string") if k == ANY else Const(k), v], "tuple") for k, v in known.items()]
            return seq(pairs, "iterator", open=ANY in store)
        if name == "values":
            return seq(known.values(), "iterator", open=ANY in store)
        if name == "keys":
            return seq([unknown() if k == ANY else Const(k) for k in known], "iterator", open=ANY in store)
        if name in ("get", "setdefault", "pop") and args:
            key = constant(args[0])
            if isinstance(args[0], Const) and key in store:
                found: Value = store[key]
                return found
            default = args[1] if len(args) > 1 else NONE
            if name == "setdefault" and isinstance(args[0], Const):
                self.interpreter.set_item(receiver, args[0], default, node)
                return default
            if isinstance(args[0], Choice):
                return choice(self._dict_method(receiver, name, [o, *args[1:]], {}, node) for o in args[0].options)
            if isinstance(args[0], Const) and ANY not in store:
                return default
            return choice([*store.values(), default]) if store and not isinstance(args[0], Const) else unknown()
        if name == "update":
            for value in args:
                if isinstance(value, Dict):
                    for key, item in value.store.items():
                        self.interpreter.set_item(receiver, unknown() if key == ANY else Const(key), item, node)
                else:
                    self.interpreter.set_item(receiver, unknown(), unknown(), node)
            for key, item in kwargs.items():
                self.interpreter.set_item(receiver, Const(key), item, node)
            return NONE
        if name == "copy":
            return Dict(dict(store), receiver.kind)
        return unknown()

    def _constant_method(self, receiver: Const, name: str, args: list[Value]) -> Value:
        value = receiver.value
        simple = ("lower", "upper", "strip", "startswith", "endswith", "replace", "removeprefix", "split", "title")
        if isinstance(value, str) and name in simple and all(isinstance(a, Const) for a in args):
            try:
                result = getattr(value, name)(*(constant(a) for a in args))
            except (TypeError, ValueError):
                return unknown("string")
            return seq([Const(r) for r in result]) if isinstance(result, list) else Const(result)
        return unknown("string") if isinstance(value, str) else unknown()

    def _math(self, name: str, args: list[Value]) -> Value:
        value = constant(args[0]) if args else None
        if isinstance(value, (int, float)) and name in ("sqrt", "log", "exp", "floor", "ceil", "log2"):
            try:
                return Const(getattr(math, name)(value))
            except (ValueError, OverflowError):
                return Number()
        return Number()

    def _builtin(self, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        found = BUILTINS.get(name)
        if found is not None:
            return found(self, args, kwargs, node)
        return unknown(*(ops.marks_of(args) & ops.KEPT))

    # ---- attributes, items, iteration

    def attribute(self, value: Value, name: str, node: Any) -> Value:
        """An attribute that the object's own store does not have."""
        if isinstance(value, Param):
            return self._param_attribute(value, name, node)
        if isinstance(value, Tensor):
            return self._tensor_attribute(value, name, node)
        if isinstance(value, Opaque):
            return self._opaque_attribute(value, name)
        if isinstance(value, Instance):
            if modules.is_module(self, value) and name in ("module", "_orig_mod", "base_model"):
                return value
            if name == "training":
                on = value.store.get("\0training", True)
                return Const(on) if isinstance(on, bool) and "\0training" in value.store else unknown()
            return Bound(value, name)
        if isinstance(value, Optimizer):
            if name == "param_groups":
                params = seq(value.store["params"], open=True)
                return seq([Dict({"params": params, ANY: Number()})], open=True)
            if name == "state":
                return Dict({ANY: unknown()})
            return Bound(value, name)
        if isinstance(value, Device):
            return (
                choice(Const(t) for t in sorted(value.types))
                if name == "type" and "?" not in value.types
                else unknown()
            )
        if isinstance(value, DType):
            if name == "is_floating_point":
                return Const(all(n in FLOATING for n in value.names)) if value.names else unknown()
            return Number() if name == "itemsize" else unknown()
        if isinstance(value, StateDict):
            return Bound(value, name)
        if isinstance(value, Function):
            return unknown()
        return Bound(value, name)

    def _param_attribute(self, value: Param, name: str, node: Any) -> Value:
        if name == "data":
            return value
        if name == "requires_grad":
            if "requires_grad" not in value.store:
                return unknown()
            return Const(value.trainable) if value.trainable is not None else unknown()
        if name == "grad":
            dtype = value.dtype
            return Tensor(dtype, value.store.get("spot"), "grad", frozenset({"gradient"}))
        tensor = ops.as_tensor(self, value)
        if name in ("shape", "device", "dtype", "ndim", "T", "mT", "is_leaf", "grad_fn", "is_cuda", "layout"):
            return self._tensor_attribute(tensor, name, node) if isinstance(tensor, Tensor) else unknown()
        if name in value.store and name not in ("dtype", "spot", "origin", "kind", "positions", "created"):
            stored: Value = value.store[name]
            return stored
        return Bound(value, name)

    def _tensor_attribute(self, value: Tensor, name: str, node: Any) -> Value:
        if name == "dtype":
            return DType(value.dtype, value.origin) if value.dtype else unknown("dtype")
        if name == "shape":
            return seq([Number()], "shape", open=True)
        if name in ("ndim", "itemsize", "nbytes"):
            return Number()
        if name == "device":
            return unknown("device")
        if name in ("T", "mT", "H", "data", "real"):
            return value
        if name == "grad":
            return Tensor(value.dtype, value.spot, "grad", frozenset({"gradient"}))
        if name in ("is_cuda", "requires_grad", "is_leaf", "grad_fn", "is_sparse", "layout", "is_contiguous"):
            return unknown()
        return Bound(value, name)

    def _opaque_attribute(self, value: Opaque, name: str) -> Value:
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

    def attribute_set(self, target: Value, name: str, value: Value, node: Any) -> None:
        put = self.interpreter.heap.put
        if isinstance(target, Param):
            if name == "requires_grad":
                put(target.store, "requires_grad", truth(value))
            elif name == "data":
                tensor = ops.as_tensor(self, value)
                put(target.store, "dtype", tensor.dtype if isinstance(tensor, Tensor) else None)
                put(target.store, "spot", self.spot(node))
            elif name == "grad":
                self.training.gradient_written(node)
                self.training.gradients_cleared()
            return
        if isinstance(target, Instance):
            self._replaced_parameter(target, name, value, node)
        if isinstance(target, Opaque):
            if name == "requires_grad":
                put(target.store, "requires_grad", truth(value))
            else:
                put(target.store, "attr:" + name, value)
        if isinstance(target, Tensor) and name == "grad":
            self.training.gradient_written(node)

    def _replaced_parameter(self, target: Instance, name: str, value: Value, node: Any) -> None:
        """A parameter of one module given to another is tied; a fresh one in its place breaks the tie."""
        before = target.store.get(name)
        if not isinstance(value, Param) or not isinstance(before, Param):
            return
        if before.store.get("tied") and value.store.get("fresh"):
            self.facts.add(Kind.CAST, self.spot(node), value.dtype or "", unties=True)
        elif not value.store.get("fresh"):
            self.interpreter.heap.put(value.store, "tied", True)

    def item(self, value: Value, index: Value, node: Any) -> Value:
        if isinstance(value, Param):
            value = ops.as_tensor(self, value)
        if isinstance(value, Tensor):
            return replace(value, zero_dim=False)
        if isinstance(value, Instance):
            kind = modules.short(value.cls)
            key = constant(index)
            if kind in modules.CONTAINERS:
                children = modules.members(value)
                if isinstance(key, int) and "\0open" not in value.store and -len(children) <= key < len(children):
                    return children[key]
                if isinstance(key, str) and key in value.store:
                    found: Value = value.store[key]
                    return found
                return choice(children) if children else unknown()
            if isinstance(value.cls, Class):
                method = self.interpreter.find_method(value.cls, "__getitem__")
                if method is not None:
                    return self.interpreter.call(self.interpreter.bind(method[0], value, method[1]), [index], {}, node)
        if isinstance(value, Opaque):
            key = constant(index)
            if isinstance(key, (str, int)) and ("item", key) in value.store:
                stored: Value = value.store[("item", key)]
                return stored
            return Opaque(marks=value.marks)
        return unknown()

    def item_set(self, target: Value, index: Value, value: Value, node: Any) -> None:
        if isinstance(target, Instance) and modules.short(target.cls) in modules.CONTAINERS:
            key = constant(index)
            names = [k for k in target.store if isinstance(k, str) and not k.startswith("\0")]
            put = self.interpreter.heap.put
            if isinstance(key, int) and "\0open" not in target.store and -len(names) <= key < len(names):
                put(target.store, names[key], value)
            else:
                for name in names:
                    put(target.store, name, join(target.store[name], value))
        elif isinstance(target, Opaque):
            key = constant(index)
            if isinstance(key, (str, int)):
                self.interpreter.heap.put(target.store, ("item", key), value)
        elif isinstance(target, Tensor):
            ops._constant(self, target.dtype, value, node, "Add")

    def stored(self, target: Dict, key: Any, value: Value, node: Any) -> None:
        if target.kind == "param_state":
            self.training.state_stored(key, value, node)

    def param_state(self, state: Dict) -> Value:
        """`self.state[p]` of a hand-written optimizer: one dict that stands for all parameters."""
        if "each" not in state.store:
            state.store["each"] = Dict({}, "param_state")
        found: Value = state.store["each"]
        return found

    def children(self, value: Instance) -> list[Value] | None:
        """The items of a module container that are all known."""
        kind = modules.short(value.cls) or (modules.library_kind(self, value) if isinstance(value.cls, Class) else "")
        if kind in ("Sequential", "ModuleList", "ParameterList") and "\0open" not in value.store:
            found = modules.members(value)
            return found if len(found) <= 32 else None
        return None

    def element(self, value: Value) -> Value:
        if isinstance(value, (Tensor, Param)):
            tensor = ops.as_tensor(self, value)
            return replace(tensor, zero_dim=False) if isinstance(tensor, Tensor) else unknown()
        if isinstance(value, Instance):
            children = modules.members(value) if modules.short(value.cls) in modules.CONTAINERS else []
            return choice(children) if children else unknown()
        if isinstance(value, Dict):
            keys = [k for k in value.store if k != ANY]
            return choice(Const(k) for k in keys) if keys and ANY not in value.store else unknown("string")
        if isinstance(value, Opaque):
            return Opaque(marks=value.marks)
        return unknown()

    def binary(self, op: str, left: Value, right: Value, node: Any) -> Value:
        if isinstance(left, Choice) and not isinstance(right, Choice):
            return self._spread(op, left, right, node)
        if isinstance(right, Choice) and not isinstance(left, Choice):
            return self._spread(op, left, right, node)
        if isinstance(left, Const) and isinstance(left.value, str):
            return unknown("string")
        return ops.binary(self, op, left, right, node)

    def _spread(self, op: str, left: Value, right: Value, node: Any) -> Value:
        found: Any = MISSING
        for a in options(left):
            for b in options(right):
                found = join(found, self.interpreter.binary(op, a, b, node))
        return found  # type: ignore[no-any-return]

    # ---- contexts

    def enter(self, value: Value, node: Any) -> tuple[Value | None, Value]:
        """What a `with` item does to what follows, and what it binds."""
        if isinstance(value, Choice):
            regions = [o for o in value.options if isinstance(o, Autocast)]
            if regions:
                first = regions[0]
                dtype = first.dtype
                for other in regions[1:]:
                    dtype = None if dtype is None or other.dtype is None else dtype | other.dtype
                enabled = first.enabled if len(regions) == len(value.options) else None
                return replace(first, dtype=dtype, enabled=enabled), value
            return (self._unknown_region(node) if any(isinstance(o, Opaque) for o in value.options) else None), value
        if isinstance(value, Autocast):
            return self._entered(value), value
        if isinstance(value, Context):
            return value, value
        if isinstance(value, Function) and value.kind == "manager":
            return value, unknown()
        if isinstance(value, Ref) and value.name in NO_GRAD:
            return Context("no_grad"), value
        if isinstance(value, Instance) and isinstance(value.cls, Class):
            method = self.interpreter.find_method(value.cls, "__enter__")
            if method is not None:
                bound = self.interpreter.call(self.interpreter.bind(method[0], value, method[1]), [], {}, node)
                return None, bound
            return None, value
        if isinstance(value, Opaque):
            return self._unknown_region(node), unknown()
        return None, value

    def _entered(self, region: Autocast) -> Autocast:
        """The region as it runs: one without a dtype inside another of the same device keeps that one's dtype."""
        outer = self.autocast()
        if outer is not None and not region.dtype_given and region.enabled is not False:
            if outer.devices == region.devices and outer.enabled is not False:
                return replace(region, dtype=outer.dtype)
            return replace(region, dtype=None)
        if region.enabled:
            self.training.regions.append(region)
        return region

    def _unknown_region(self, node: Any) -> Value | None:
        """A context manager that cannot be followed may be an autocast region of any dtype."""
        return Autocast(frozenset({"?"}), None, None, None)


def _terms(node: Any) -> list[Any]:
    """The operands of nested sums and products, and the arguments of lerp."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, (cst.Add, cst.Multiply, cst.Subtract)):
        return _terms(node.left) + _terms(node.right)
    return [node]


def _recurs(node: Any, target: Any) -> bool:
    """Whether an expression is `decay * target + something`: a recurrence, not a residual sum."""
    if not isinstance(node, cst.BinaryOperation) or not isinstance(node.operator, cst.Add):
        return False
    if any(isinstance(term, cst.Call) for term in _terms(node)):
        return False
    sides = [side for side in (node.left, node.right) if isinstance(side, cst.BinaryOperation)]
    products = [side for side in sides if isinstance(side.operator, cst.Multiply)]
    return any(_same_expression(term, target) for side in products for term in _terms(side))


def _same_expression(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, cst.Name):
        return bool(one.value == other.value)
    if isinstance(one, cst.Attribute):
        return bool(one.attr.value == other.attr.value) and _same_expression(one.value, other.value)
    if isinstance(one, cst.Subscript):
        return _same_expression(one.value, other.value) and bool(one.deep_equals(other))
    return False


def device_types(value: Value | None) -> frozenset[str]:
    """The device types a value may name; {"?"} where that is not known."""
    if value is None:
        return frozenset({"?"})
    if isinstance(value, Choice):
        return frozenset().union(*(device_types(option) for option in value.options))
    if isinstance(value, Device):
        return value.types
    if isinstance(value, Const) and isinstance(value.value, str):
        return frozenset({value.value.split(":")[0]})
    return frozenset({"?"})


Call = Callable[[Torch, str, list[Value], dict[str, Value], Any], Value]


def _no_grad(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if args and isinstance(args[0], Function):
        return args[0]
    return Context("no_grad")


def _enable_grad(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Context("enable_grad")


def _set_grad_enabled(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    on = truth(args[0]) if args else None
    return Context("enable_grad" if on else "no_grad") if on is not None else Context("null")


def _null(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Context("null")


def _device(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Device(device_types(args[0] if args else None))


def _deepcopy(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return modules.deepcopy(torch, args[0]) if args else unknown()


def _save(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    torch.training.save(args[0] if args else kwargs.get("obj", unknown()), node)
    return NONE


def _autograd_grad(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    root = ops.as_tensor(torch, args[0] if args else kwargs.get("outputs", unknown()))
    keys = [int(m.split(":")[1]) for m in ops.marks_of([root]) if m.startswith("scaler:")]
    if keys:
        torch.training.scaled_backward(keys, node)
    marks = {"gradient"}
    if keys and truth(kwargs.get("create_graph", Const(False))):
        marks |= {"penalty"}
    found = Tensor(None, torch.spot(node), "grad", frozenset(marks), low_at=torch.spot(node))
    return seq([found], "tuple", open=True)


def _backward(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    root = args[0] if args else kwargs.get("tensors", unknown())
    for item in root.items if isinstance(root, Seq) else (root,):
        torch.training.backward(item, node)
    return NONE


def _set_default_dtype(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    wanted = ops.dtype_argument(torch, args[0] if args else None)
    dtype = ops.names(wanted) if wanted is not None else None
    torch.interpreter.heap.put(torch.interpreter.world, "default_dtype", dtype)
    torch.interpreter.heap.put(torch.interpreter.world, "default_spot", torch.spot(node))
    return NONE


def _finfo(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    wanted = ops.dtype_argument(torch, args[0] if args else None)
    dtype = ops.names(wanted) if wanted is not None else None
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


def _checkpoint(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    return torch.interpreter.call(
        args[0], args[1:], {k: v for k, v in kwargs.items() if k not in ("use_reentrant",)}, node
    )


def _partial(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    return Instance(
        Ref("functools.partial"), {"\0call": args[0], "\0args": seq(args[1:]), "\0kwargs": Dict(dict(kwargs))}
    )


def _averaged_model(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    copied = modules.deepcopy(torch, args[0])
    for _, param in modules.parameters(torch, copied):
        if param.dtype is not None and param.dtype <= {"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}:
            torch.training.average(param.dtype, torch.spot(node), node)
            break
    return copied


def _namespace(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(Ref("types.SimpleNamespace"), {k: v for k, v in kwargs.items() if not k.startswith("\0")})


def _parser(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(
        Ref("argparse.ArgumentParser"), {"\0arguments": Dict({}), "add_argument": Ref("argparse.add_argument")}
    )


def plain(value: Value) -> Any:
    """The Python object behind nested constants; None stands for what is not known."""
    if isinstance(value, Dict):
        return {key: plain(item) for key, item in value.store.items() if isinstance(key, str)}
    return constant(value)


def _deepspeed(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    config = kwargs.get("config", kwargs.get("config_params"))
    if isinstance(config, Dict):
        for remark in configs.deepspeed(plain(config)):
            torch.facts.add(
                remark.kind, torch.spot(node), remark.dtype, remark.role, None, remark.detail, **remark.attrs
            )
    torch.outside_scaling = True
    model = kwargs.get("model", args[0] if args else unknown())
    return seq([Opaque(), Opaque(), Opaque(), Opaque()] if not isinstance(model, Const) else [Opaque()] * 4, "tuple")


def _trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """Lightning's Trainer(precision=...) and transformers' Trainer(model, args)."""
    precision = constant(kwargs.get("precision"))
    if precision in configs.TRAINER_PRECISIONS:
        torch.facts.add(Kind.CONFIG, torch.spot(node), precision=precision, key="precision")
    arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
    model = kwargs.get("model", args[0] if args else None)
    if isinstance(arguments, Instance) and model is not None and "peft_config" not in kwargs:
        torch.training.trainer(model, arguments, node)
    return unknown()


def _training_arguments(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if constant(kwargs.get("fp16")) is True and constant(kwargs.get("bf16")) is True:
        torch.facts.add(Kind.CONFIG, torch.spot(node), "", None, None, "fp16 and bf16 are both on", conflict=True)
    return Instance(Ref("transformers.TrainingArguments"), {k: v for k, v in kwargs.items() if not k.startswith("\0")})


def _from_pretrained(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A model that a framework loads: its parameters have the dtype asked for, or one that is not known."""
    wanted = ops.dtype_argument(torch, kwargs.get("dtype", kwargs.get("torch_dtype")))
    dtype = ops.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {"dtype": dtype}
    if {"quantization_config", "load_in_8bit", "load_in_4bit", "\0rest"} & set(kwargs):
        store["dtype"] = None
    elif dtype is not None:
        store["spot"] = torch.spot(node)
    return Opaque(store)


CALLS: dict[str, Call] = {
    **dict.fromkeys(NO_GRAD, _no_grad),
    **dict.fromkeys(ENABLE_GRAD, _enable_grad),
    "torch.set_grad_enabled": _set_grad_enabled,
    "contextlib.nullcontext": _null,
    "contextlib.suppress": _null,
    "torch.profiler.record_function": _null,
    "torch.autograd.profiler.record_function": _null,
    "torch.device": _device,
    "torch.cuda.device": _null,
    "copy.deepcopy": _deepcopy,
    "copy.copy": _deepcopy,
    "torch.save": _save,
    "torch.autograd.grad": _autograd_grad,
    "torch.autograd.backward": _backward,
    "torch.set_default_dtype": _set_default_dtype,
    "torch.finfo": _finfo,
    "torch.utils.checkpoint.checkpoint": _checkpoint,
    "torch.optim.swa_utils.AveragedModel": _averaged_model,
    "types.SimpleNamespace": _namespace,
    "argparse.Namespace": _namespace,
    "argparse.ArgumentParser": _parser,
    "functools.partial": _partial,
    "deepspeed.initialize": _deepspeed,
    "lightning.Trainer": _trainer,
    "lightning.pytorch.Trainer": _trainer,
    "pytorch_lightning.Trainer": _trainer,
    "lightning.fabric.Fabric": _trainer,
    "lightning.Fabric": _trainer,
    "transformers.Trainer": _trainer,
    "transformers.Seq2SeqTrainer": _trainer,
    "trl.SFTTrainer": _trainer,
    "transformers.TrainingArguments": _training_arguments,
    "transformers.Seq2SeqTrainingArguments": _training_arguments,
    "trl.SFTConfig": _training_arguments,
}


def _isinstance(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    classes = args[1].items if isinstance(args[1], Seq) else (args[1],)
    verdicts = [_is_instance(torch, args[0], cls) for cls in classes]
    if True in verdicts:
        return Const(True)
    return unknown() if None in verdicts else Const(False)


def _is_instance(torch: Torch, value: Value, cls: Value) -> bool | None:
    """Whether an object is of a class, None where that is not known."""
    if isinstance(value, Instance):
        if isinstance(cls, Class):
            return cls in torch.interpreter.mro(value.cls)
        if isinstance(cls, Ref):
            wanted = cls.name.rsplit(".", 1)[-1]
            if not cls.name.startswith("torch.nn"):
                return None if not value.library else False
            kinds = {modules.short(value.cls)} | {
                b.rsplit(".", 1)[-1] for b in torch.interpreter.library_bases(value.cls)
            }
            if wanted in kinds:
                return True
            if wanted == "Module":
                return modules.is_module(torch, value)
            groups = {
                "_BatchNorm": modules.BATCH_NORMS,
                "_NormBase": modules.BATCH_NORMS | modules.INSTANCE_NORMS,
                "_ConvNd": {k for k in modules.WEIGHTED if k.startswith("Conv")},
            }
            if wanted in groups:
                return bool(kinds & groups[wanted])
            return False if modules.is_module(torch, value) else None
        return None
    if isinstance(value, (Tensor, Param)) and isinstance(cls, Ref):
        if cls.name in ("torch.Tensor",):
            return True
        if cls.name.endswith("nn.Parameter"):
            return isinstance(value, Param)
        return False
    if isinstance(value, Const) and isinstance(cls, Ref) and cls.name.startswith("builtins."):
        return type(value.value).__name__ == cls.name[9:]
    return None


def _zip(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    rows = [torch.interpreter.concrete(a) for a in args]
    if all(r is not None for r in rows) and rows:
        return seq([seq(row, "tuple") for row in zip(*(r for r in rows if r is not None), strict=False)], "iterator")
    return seq([seq([torch.interpreter.element(a) for a in args], "tuple")], "iterator", open=True)


def _enumerate(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    items = torch.interpreter.concrete(args[0]) if args else None
    if items is not None:
        return seq([seq([Const(i), item], "tuple") for i, item in enumerate(items)], "iterator")
    item = torch.interpreter.element(args[0]) if args else unknown()
    return seq([seq([Number(), item], "tuple")], "iterator", open=True)


def _range(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    count = constant(args[0]) if len(args) == 1 else None
    if isinstance(count, int) and count <= 1:
        return seq([Const(0)] * max(count, 0), "range")
    return seq([Number()], "range", open=True)


def _listed(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return seq([])
    items = torch.interpreter.concrete(args[0])
    if items is not None:
        return seq(items)
    return seq([torch.interpreter.element(args[0])], open=True)


def _tuple(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    found = _listed(torch, args, kwargs, node)
    return seq(found.items, "tuple", found.open) if isinstance(found, Seq) else found


def _dict(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    store: dict[Any, Any] = {}
    if args and isinstance(args[0], Dict):
        store.update(args[0].store)
    elif args:
        store[ANY] = unknown()
    store.update({k: v for k, v in kwargs.items() if k != "\0rest"})
    if "\0rest" in kwargs:
        store[ANY] = unknown()
    return Dict(store)


def _number(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = constant(args[0]) if args else None
    if isinstance(value, (int, float, str)):
        try:
            return Const(float(value))
        except (ValueError, OverflowError):
            return Number()
    return args[0] if args and isinstance(args[0], Number) else Number()


def _int(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = constant(args[0]) if args else None
    return Const(int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else Number()


def _len(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = args[0] if args else unknown()
    if isinstance(value, Seq) and not value.open:
        return Const(len(value.items))
    if isinstance(value, Dict) and value.kind == "param_state":
        return Const(0) if not value.store else Number()
    return Number()


def _getattr(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    name = constant(args[1]) if len(args) > 1 else None
    if isinstance(name, str):
        found = torch.interpreter.get_attribute(args[0], name, node)
        if isinstance(found, Bound) and len(args) > 2 and isinstance(args[0], Instance):
            return choice([args[2], unknown()])
        return found
    return unknown()


def _setattr(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    name = constant(args[1]) if len(args) > 2 else None
    if isinstance(name, str):
        torch.interpreter.set_attribute(args[0], name, args[2], node)
    elif len(args) > 2:
        modules.escape(torch, args[0])
    return NONE


def _sum(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    item = torch.interpreter.element(args[0])
    tensor = ops.as_tensor(torch, item)
    return (
        tensor
        if isinstance(tensor, Tensor)
        else Number()
        if isinstance(item, (Const, Number))
        else unknown(*ops.marks_of([item]) & ops.KEPT)
    )


def _extreme(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    values = [constant(a) for a in args]
    if len(values) > 1 and all(isinstance(v, (int, float)) for v in values):
        return args[0] if len(set(values)) == 1 else Number()
    return Number()


def _iterator(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return args[0] if args else unknown()


def _next(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return torch.interpreter.element(args[0]) if args else unknown()


def _filter(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    items = torch.interpreter.concrete(args[1])
    kept: list[Value] = []
    open_ = items is None
    for item in items if items is not None else [torch.interpreter.element(args[1])]:
        verdict = truth(torch.interpreter.call(args[0], [item], {}, node))
        if verdict is not False:
            kept.append(item)
            open_ = open_ or verdict is None
    return seq(kept, "iterator", open_)


def _map(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    items = torch.interpreter.concrete(args[1])
    found = [
        torch.interpreter.call(args[0], [item], {}, node)
        for item in (items if items is not None else [torch.interpreter.element(args[1])])
    ]
    return seq(found, "iterator", items is None)


def _silent(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return NONE


def _string(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = constant(args[0]) if args else None
    return Const(str(value)) if isinstance(value, (str, int)) else unknown("string")


def _bool(torch: Torch, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    known = truth(args[0]) if args else False
    return unknown() if known is None else Const(known)


BUILTINS: dict[str, Callable[[Torch, list[Value], dict[str, Value], Any], Value]] = {
    "isinstance": _isinstance,
    "zip": _zip,
    "enumerate": _enumerate,
    "range": _range,
    "list": _listed,
    "sorted": _listed,
    "tuple": _tuple,
    "reversed": _listed,
    "set": _listed,
    "dict": _dict,
    "float": _number,
    "int": _int,
    "round": _int,
    "len": _len,
    "getattr": _getattr,
    "setattr": _setattr,
    "sum": _sum,
    "max": _extreme,
    "min": _extreme,
    "abs": _iterator,
    "iter": _iterator,
    "next": _next,
    "filter": _filter,
    "map": _map,
    "print": _silent,
    "str": _string,
    "bool": _bool,
}
