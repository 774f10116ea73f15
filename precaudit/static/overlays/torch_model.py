"""Answers what the interpreter asks about everything that the code under check did not define."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precaudit.static import overlays
from precaudit.static.language import calls, classes, expressions, objects
from precaudit.static.language.heap import MISSING
from precaudit.static.language.interpreter import Interpreter
from precaudit.static.language.values import (
    ANY,
    Autocast,
    Bound,
    Choice,
    Class,
    Const,
    Context,
    Dict,
    Dtypes,
    Function,
    Instance,
    Opaque,
    Ref,
    Scaler,
    Spot,
    Tensor,
    Value,
    join,
    options,
    unknown,
)
from precaudit.static.overlays import data_files, records
from precaudit.static.overlays.events import Bus
from precaudit.static.overlays.facts import Facts
from precaudit.static.overlays.torch import (
    attributes,
    handwritten,
    methods,
    modules,
    operands,
    ops,
    optimizers,
    rebinding,
    regions,
)
from precaudit.static.overlays.torch.training import Training


class Torch:
    """Holds what is known of one file's training, and passes each question to the module that knows the answer."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.bus = Bus()
        self.training = Training()
        self.interpreter: Interpreter = Interpreter(self)
        self.outside_scaling = False
        self.read_beside: Callable[[Any, str], bytes | None] = lambda source, name: None
        """source, relative path -> the content of a file near it, None where there is none."""
        self.structured: dict[str, Value] = {}
        """The configs that a script gives Hydra as classes, by group and name."""
        self._nodes: dict[int, Spot] = {}
        self.float16_region: Spot | None = None
        """The last region that ran something in float16."""
        self.loss_built: Spot | None = None
        """Where the loss module that is being called was built."""

    def spot(self, node: Any) -> Spot:
        return self.interpreter.spot(node)

    def remember(self, node: Any) -> None:
        """Keeps the place of a node that an event names by identity."""
        self._nodes.setdefault(id(node), self.spot(node))

    def known_spot(self, identity: int) -> Spot:
        return self._nodes[identity]

    def met(self, framework: str) -> None:
        """A framework is used here; its words are those of the fixes."""
        if framework not in self.training.frameworks:
            self.training.frameworks.append(framework)

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
        """Whether a forward method, or a function named for a norm, is being run."""
        names = {f.function.name.value for f in self.interpreter.frames if f.function is not None}
        return not names.isdisjoint(("forward", "__call__")) or any("norm" in name.lower() for name in names)

    def default_dtype(self) -> Dtypes | None:
        found: Dtypes | None = self.interpreter.world.get("default_dtype", frozenset({"float32"}))
        return found

    def function_context(self, function: Function) -> Any:
        """What a function's decorators do around its body."""
        for decorator in function.decorators:
            if isinstance(decorator, Ref):
                if decorator.name in ("contextlib.contextmanager", "contextmanager"):
                    return "contextmanager"
                if decorator.name in regions.NO_GRAD:
                    return Context("no_grad")
            if isinstance(decorator, Choice):
                decorator = decorator.options[0]
            if isinstance(decorator, (Autocast, Context)):
                return decorator
        if isinstance(function.owner, Class):
            regions_of = (context(function.owner, function) for context in overlays.answering("context"))
            return next((region for region in regions_of if region is not None), None)
        return None

    def hook_arguments(self, cls: Class, name: str) -> dict[str, Value]:
        """What libraries are known to call this method of a class under check with."""
        return {key: value for ask in overlays.answering("hook_arguments") for key, value in ask(cls, name).items()}

    def returned(self, cls: Class, name: str, value: Value, node: Any) -> None:
        """What this method of a class under check gives back to a library that calls it."""
        for note in overlays.answering("returned"):
            note(self, cls, name, value, node)

    def class_made(self, cls: Class) -> None:
        records.class_made(self, cls)

    def looked_up(self, cls: Class, args: list[Value], kwargs: dict[str, Value]) -> Value | None:
        return records.looked_up(cls, args, kwargs)

    def field_default(self, declared: Value, node: Any) -> Value | None:
        return records.default_of(self, declared, node)

    def argument(self, function: Function, name: str) -> Value | None:
        handed = (ask(self, function, name) for ask in overlays.answering("argument"))
        return next((value for value in handed if value is not None), None)

    def file_name(self, source: Any) -> Value:
        return data_files.file_name(source)

    def is_autograd_function(self, cls: Class) -> bool:
        return any(b.endswith("autograd.Function") for b in classes.library_bases(cls))

    def init_library_base(self, instance: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """What the imported base class's __init__ leaves on the object."""
        if handwritten.is_optimizer_class(instance.cls):
            handwritten.init_optimizer(self, instance, args, kwargs)
            return
        kind = modules.library_kind(self, instance)
        if kind:
            made: dict[Any, Any] = {}
            modules.build(self, kind, args, kwargs, node, made)
            for name, value in made.items():
                self.interpreter.heap.put(instance.store, name, value)
            return
        for base in classes.library_bases(instance.cls):
            if base in overlays.bases():
                overlays.bases()[base](self, base, args, kwargs, node)
                return

    def call_unknown_module(self, target: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        kind = modules.library_kind(self, target)
        if kind and kind != "Module":
            return modules.call_library(self, target, kind, args, kwargs, node)
        return self.opaque_result([*args, *kwargs.values()], node)

    def run_step(self, instance: Instance, node: Any) -> None:
        """Runs the step method of a hand-written optimizer that a GradScaler steps."""
        method = classes.find_method(instance.cls, "step")
        if method is not None:
            calls.call(self.interpreter, classes.bind(method[0], instance, method[1]), [], {}, node)

    def call(self, function: Value, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if isinstance(function, Ref):
            if function.name.startswith("torch."):
                args, kwargs = operands.in_front(operands.OF_FUNCTIONS, args, kwargs)
            return overlays.meaning(function.name)(self, function.name, args, kwargs, node)
        if isinstance(function, Bound):
            return methods.call_method(self, function.receiver, function.name, args, kwargs, node)
        if isinstance(function, Instance):
            if function.library == "functools.partial":
                held = function.store
                merged = {**held["\0kwargs"].store, **kwargs}
                return calls.call(self.interpreter, held["\0call"], [*held["\0args"].items, *args], merged, node)
            if function.library == records.TUPLE_CLASS:
                return records.tuple_of(function, args, kwargs)
            kind = modules.short(function.cls)
            if kind:
                return modules.call_library(self, function, kind, args, kwargs, node)
        if isinstance(function, Opaque):
            for value in (*args, *kwargs.values()):
                modules.escape(self, value)
            return self.opaque_result([function, *args, *kwargs.values()], node)
        return self.opaque_result([*args, *kwargs.values()], node)

    def opaque_result(self, values: list[Value], node: Any) -> Value:
        marks = operands.marks_of([operands.as_tensor(self, v) for v in values]) & (
            operands.KEPT - {"weights", "gradient", "positions", "counts"}
        )
        region = self.autocast()
        if not self.grad():
            marks -= {"float16", "bfloat16", "differentiable"}
        elif region is not None and region.enabled is None and region.dtype == frozenset({"bfloat16"}):
            marks |= region.dtype
        elif region is not None and region.enabled is True and region.dtype is not None and len(region.dtype) == 1:
            low = region.dtype & {"float16", "bfloat16"}
            marks |= low
            if low == {"float16"}:
                self.float16_region = region.spot
        if self.grad() and (halved := [v for v in values if isinstance(v, Opaque) and optimizers.trains(self, v)]):
            marks |= {"float16", "differentiable"}
            self.float16_region = halved[0].store.get("spot")
        if any(isinstance(v, Scaler) for v in values):
            self.outside_scaling = True
        return Opaque(marks=marks)

    def stored(self, target: Dict, key: Any, value: Value, node: Any) -> None:
        if target.kind == "param_state":
            handwritten.state_stored(self, target, key, value, node)
        elif target.kind == "optimizer_state" and isinstance(value, Dict):
            for slot, held in value.store.items():
                index = unknown() if slot == ANY else Const(slot)
                objects.set_item(self.interpreter, self.param_state(target), index, held, node)

    def param_state(self, state: Dict) -> Value:
        """`self.state[p]` of a hand-written optimizer: one dict that stands for all parameters."""
        if "each" not in state.store:
            state.store["each"] = Dict({}, "param_state")
        found: Value = state.store["each"]
        return found

    def binary(self, op: str, left: Value, right: Value, node: Any) -> Value:
        if isinstance(left, Choice) and not isinstance(right, Choice):
            return self._spread(op, left, right, node)
        if isinstance(right, Choice) and not isinstance(left, Choice):
            return self._spread(op, left, right, node)
        if isinstance(left, Const) and isinstance(left.value, str):
            return unknown("string")
        if op == "Divide" and isinstance(left, Instance) and left.library == data_files.PATH:
            return data_files.joined(left, right)
        return ops.binary(self, op, left, right, node)

    def _spread(self, op: str, left: Value, right: Value, node: Any) -> Value:
        found: Any = MISSING
        for a in options(left):
            for b in options(right):
                found = join(found, expressions.binary(self.interpreter, op, a, b, node))
        return found  # type: ignore[no-any-return]

    def reference(self, name: str, spot: Spot) -> Value:
        return attributes.reference(name, spot)

    def attribute(self, value: Value, name: str, node: Any) -> Value:
        return attributes.attribute(self, value, name, node)

    def attribute_set(self, target: Value, name: str, value: Value, node: Any) -> None:
        attributes.attribute_set(self, target, name, value, node)

    def item(self, value: Value, index: Value, node: Any) -> Value:
        return attributes.item(self, value, index, node)

    def item_set(self, target: Value, index: Value, value: Value, node: Any) -> None:
        attributes.item_set(self, target, index, value, node)

    def children(self, value: Instance) -> list[Value] | None:
        return attributes.children(self, value)

    def element(self, value: Value) -> Value:
        return attributes.element(self, value)

    def augmented(self, op: str, target: Value, value: Value, node: Any) -> Value:
        return rebinding.augmented(self, op, target, value, node)

    def rebinding(self, target: Any, expression: Any, value: Value) -> Value:
        return rebinding.rebinding(self, target, expression, value)

    def perhaps(self, items: list[Value]) -> list[Value]:
        return optimizers.perhaps(items)

    def rebuilding(self, expression: Any, names: frozenset[str], value: Value) -> Value:
        return rebinding.rebuilding(self, expression, names, value)

    def enter(self, value: Value, node: Any) -> tuple[Value | None, Value]:
        return regions.enter(self, value, node)
