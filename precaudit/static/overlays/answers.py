"""Answers what the interpreter asks about everything that the code under check did not define."""

from __future__ import annotations

from typing import Any

from precaudit.static import overlays
from precaudit.static.language import calls, classes, expressions, objects
from precaudit.static.language.heap import MISSING
from precaudit.static.language.values import (
    ANY,
    Autocast,
    Bound,
    Choice,
    Class,
    Const,
    Context,
    Dict,
    Function,
    Instance,
    Opaque,
    Ref,
    Spot,
    Value,
    join,
    options,
    unknown,
)
from precaudit.static.overlays import data_files, records
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import (
    attributes,
    handwritten,
    methods,
    modules,
    opaque,
    operands,
    ops,
    optimizers,
    rebinding,
    regions,
)


class Answers:
    """Passes each question to the module that knows the answer."""

    def __init__(self, run: Run) -> None:
        self.run = run

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
            note(self.run, cls, name, value, node)

    def class_made(self, cls: Class) -> None:
        records.class_made(self.run, cls)

    def looked_up(self, cls: Class, args: list[Value], kwargs: dict[str, Value]) -> Value | None:
        return records.looked_up(cls, args, kwargs)

    def field_default(self, declared: Value, node: Any) -> Value | None:
        return records.default_of(self.run, declared, node)

    def argument(self, function: Function, name: str) -> Value | None:
        handed = (ask(self.run, function, name) for ask in overlays.answering("argument"))
        return next((value for value in handed if value is not None), None)

    def file_name(self, source: Any) -> Value:
        return data_files.file_name(source)

    def is_autograd_function(self, cls: Class) -> bool:
        return any(b.endswith("autograd.Function") for b in classes.library_bases(cls))

    def init_library_base(self, instance: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
        """What the imported base class's __init__ leaves on the object."""
        if handwritten.is_optimizer_class(instance.cls):
            handwritten.init_optimizer(self.run, instance, args, kwargs)
            return
        kind = modules.library_kind(self.run, instance)
        if kind:
            made: dict[Any, Any] = {}
            modules.build(self.run, kind, args, kwargs, node, made)
            for name, value in made.items():
                self.run.interpreter.heap.put(instance.store, name, value)
            return
        for base in classes.library_bases(instance.cls):
            if base in overlays.bases():
                overlays.bases()[base](self.run, base, args, kwargs, node)
                return

    def call_unknown_module(self, target: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        kind = modules.library_kind(self.run, target)
        if kind and kind != "Module":
            return modules.call_library(self.run, target, kind, args, kwargs, node)
        return opaque.result(self.run, [*args, *kwargs.values()], node)

    def call(self, function: Value, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
        if isinstance(function, Ref):
            if function.name.startswith("torch."):
                args, kwargs = operands.in_front(operands.OF_FUNCTIONS, args, kwargs)
            return overlays.meaning(function.name)(self.run, function.name, args, kwargs, node)
        if isinstance(function, Bound):
            return methods.call_method(self.run, function.receiver, function.name, args, kwargs, node)
        if isinstance(function, Instance):
            if function.library == "functools.partial":
                held = function.store
                merged = {**held["\0kwargs"].store, **kwargs}
                return calls.call(self.run.interpreter, held["\0call"], [*held["\0args"].items, *args], merged, node)
            if function.library == records.TUPLE_CLASS:
                return records.tuple_of(function, args, kwargs)
            kind = modules.short(function.cls)
            if kind:
                return modules.call_library(self.run, function, kind, args, kwargs, node)
        if isinstance(function, Opaque):
            for value in (*args, *kwargs.values()):
                modules.escape(self.run, value)
            return opaque.result(self.run, [function, *args, *kwargs.values()], node)
        return opaque.result(self.run, [*args, *kwargs.values()], node)

    def worth_reading(self, values: list[Value]) -> bool:
        return any(operands.holds_low(value) for value in values)

    def stored(self, target: Dict, key: Any, value: Value, node: Any) -> None:
        if target.kind == "param_state":
            tell(self.run, "state.stored", [target, Const(key), operands.as_tensor(self.run, value)], node)
        elif target.kind == "optimizer_state" and isinstance(value, Dict):
            for slot, held in value.store.items():
                index = unknown() if slot == ANY else Const(slot)
                objects.set_item(self.run.interpreter, self.param_state(target), index, held, node)

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
        return ops.binary(self.run, op, left, right, node)

    def _spread(self, op: str, left: Value, right: Value, node: Any) -> Value:
        found: Any = MISSING
        for a in options(left):
            for b in options(right):
                found = join(found, expressions.binary(self.run.interpreter, op, a, b, node))
        return found  # type: ignore[no-any-return]

    def reference(self, name: str, spot: Spot) -> Value:
        return attributes.reference(name, spot)

    def attribute(self, value: Value, name: str, node: Any) -> Value:
        return attributes.attribute(self.run, value, name, node)

    def attribute_set(self, target: Value, name: str, value: Value, node: Any) -> None:
        attributes.attribute_set(self.run, target, name, value, node)

    def item(self, value: Value, index: Value, node: Any) -> Value:
        return attributes.item(self.run, value, index, node)

    def item_set(self, target: Value, index: Value, value: Value, node: Any) -> None:
        attributes.item_set(self.run, target, index, value, node)

    def children(self, value: Instance) -> list[Value] | None:
        return attributes.children(self.run, value)

    def element(self, value: Value) -> Value:
        return attributes.element(self.run, value)

    def augmented(self, op: str, target: Value, value: Value, node: Any) -> Value:
        return rebinding.augmented(self.run, op, target, value, node)

    def rebinding(self, target: Any, expression: Any, value: Value) -> Value:
        return rebinding.rebinding(self.run, target, expression, value)

    def perhaps(self, items: list[Value]) -> list[Value]:
        return optimizers.perhaps(items)

    def rebuilding(self, expression: Any, names: frozenset[str], value: Value) -> Value:
        return rebinding.rebuilding(self.run, expression, names, value)

    def enter(self, value: Value, node: Any) -> tuple[Value | None, Value]:
        return regions.enter(self.run, value, node)
