"""What the interpreter asks about everything that the code under check did not define."""

from __future__ import annotations

from typing import Any, Protocol

from precaudit.static.language.values import Class, Dict, Function, Instance, Spot, Value

Arguments = list[Value]
Keywords = dict[str, Value]


class Library(Protocol):
    """Gives meaning to libraries; every answer is a value, an Opaque one where nothing is known."""

    def reference(self, name: str, spot: Spot) -> Value:
        """The attribute of an imported module that has this dotted name."""

    def call(self, function: Value, args: Arguments, kwargs: Keywords, node: Any) -> Value:
        """What a call of anything but a function or class under check returns."""

    def worth_reading(self, values: Arguments) -> bool:
        """Whether a module that makes nothing low has to be read all the same, because it is handed these."""

    def call_unknown_module(self, target: Instance, args: Arguments, kwargs: Keywords, node: Any) -> Value:
        """What a call of an object under check returns that has neither `__call__` nor `forward` of its own."""

    def init_library_base(self, instance: Instance, args: Arguments, kwargs: Keywords, node: Any) -> None:
        """Leaves on the object what the imported base class's `__init__` does."""

    def class_made(self, cls: Class) -> None:
        """Notes what a class that has just been defined means to the library it derives from."""

    def looked_up(self, cls: Class, args: Arguments, kwargs: Keywords) -> Value | None:
        """The object that calling the class finds instead of making one, as an enumeration's."""

    def field_default(self, declared: Value, node: Any) -> Value | None:
        """What a new object holds in a field that the class declares so; None where it has to be given."""

    def argument(self, function: Function, name: str) -> Value | None:
        """What a function's decorators hand to it under this name where its caller does not."""

    def file_name(self, source: Any) -> Value:
        """`__file__` in this source file."""

    def is_autograd_function(self, cls: Class) -> bool:
        """Whether the class is a torch.autograd.Function, which is never instantiated."""

    def function_context(self, function: Function) -> Any:
        """The region that a function's decorators put around its body, "contextmanager", or None."""

    def hook_arguments(self, cls: Class, name: str) -> Keywords:
        """What is known of the arguments that a library calls this method with."""

    def returned(self, cls: Class, name: str, value: Value, node: Any) -> None:
        """Notes what this method of the class returns: to a library that calls it, it may mean something."""

    def attribute(self, value: Value, name: str, node: Any) -> Value:
        """An attribute that the object's own store does not have."""

    def attribute_set(self, target: Value, name: str, value: Value, node: Any) -> None:
        """Notes what `target.name = value` means."""

    def item(self, value: Value, index: Value, node: Any) -> Value:
        """`value[index]`."""

    def item_set(self, target: Value, index: Value, value: Value, node: Any) -> None:
        """Notes what `target[index] = value` means."""

    def stored(self, target: Dict, key: Any, value: Value, node: Any) -> None:
        """Notes a write into a dict."""

    def param_state(self, state: Dict) -> Value:
        """`self.state[p]` of a hand-written optimizer."""

    def children(self, value: Instance) -> list[Value] | None:
        """The items of an object that are all known, or None."""

    def element(self, value: Value) -> Value:
        """One item of an iterable, standing for all."""

    def binary(self, op: str, left: Value, right: Value, node: Any) -> Value:
        """The result of an operator, by LibCST's name for it."""

    def augmented(self, op: str, target: Value, value: Value, node: Any) -> Value:
        """The result of `target op= value`."""

    def rebinding(self, target: Any, expression: Any, value: Value) -> Value:
        """What `target = expression` binds, given the expression's value."""

    def perhaps(self, items: list[Value]) -> list[Value]:
        """The items of a comprehension of which some, nobody knows which, are let through by its condition."""

    def rebuilding(self, expression: Any, names: frozenset[str], value: Value) -> Value:
        """An item of a list that replaces the list over which `names` run."""

    def enter(self, value: Value, node: Any) -> tuple[Value | None, Value]:
        """The region that a `with` item puts around its body, and what it binds."""
