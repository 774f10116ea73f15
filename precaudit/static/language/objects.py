"""Reads and writes of attributes, items and names, and what iterating over a value gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.language import calls, classes
from precaudit.static.language.heap import MISSING
from precaudit.static.language.values import (
    ANY,
    NONE,
    Bound,
    Choice,
    Class,
    Const,
    Dict,
    Function,
    Instance,
    ModuleRef,
    Number,
    Opaque,
    Ref,
    Seq,
    Super,
    Value,
    choice,
    constant,
    join,
    join_all,
    options,
    seq,
    unknown,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter

MAX_CONCRETE = 32
"""A loop over at most this many known items is run item by item; any other body is run twice."""


def concrete(run: Interpreter, value: Value) -> list[Value] | None:
    """The items of an iterable when they are all known and few."""
    if isinstance(value, Seq) and not value.open and len(value.items) <= MAX_CONCRETE:
        return list(value.items)
    if isinstance(value, Dict) and ANY not in value.store and len(value.store) <= MAX_CONCRETE:
        return [Const(key) for key in value.store]
    return run.library.children(value) if isinstance(value, Instance) else None


def element(run: Interpreter, value: Value) -> Value:
    """One item of an iterable, standing for all."""
    if isinstance(value, Choice):
        return choice(element(run, option) for option in value.options)
    if isinstance(value, Seq):
        return join_all(value.items) if value.items else unknown()
    if isinstance(value, Instance) and isinstance(value.cls, Class):
        for name in ("__iter__", "__getitem__"):
            method = classes.find_method(value.cls, name)
            if method is not None:
                args: list[Value] = [] if name == "__iter__" else [Number()]
                found = calls.call(run, classes.bind(method[0], value, method[1]), args, {}, None)
                return element(run, found) if name == "__iter__" else found
    return run.library.element(value)


def get_attribute(run: Interpreter, value: Value, name: str, node: Any) -> Value:
    if isinstance(value, Choice):
        kept = [o for o in value.options if not (isinstance(o, Const) and o.value is None)]
        return choice(get_attribute(run, option, name, node) for option in kept) if kept else unknown()
    if isinstance(value, Instance):
        found = _instance_attribute(run, value, name, node)
        if found is not None:
            return found
    if isinstance(value, Class):
        for owner in classes.mro(value):
            if name in owner.store:
                member: Value = owner.store[name]
                if isinstance(member, Function):
                    kinds = {d.name for d in member.decorators if isinstance(d, Ref)}
                    if "builtins.classmethod" in kinds:
                        return classes.bind(member, value, owner)
                    return Function(member.node, member.scope, member.defaults, owner, None, member.decorators)
                return member
        if name == "__name__":
            return Const(value.name)
    if isinstance(value, ModuleRef):
        if name in value.store:
            stored: Value = value.store[name]
            return stored
        return unknown()
    if isinstance(value, Super):
        return _super_attribute(run, value, name)
    if isinstance(value, Ref):
        return run.library.reference(f"{value.name}.{name}", run.spot(node))
    return run.library.attribute(value, name, node)


def _instance_attribute(run: Interpreter, value: Instance, name: str, node: Any) -> Value | None:
    if name in value.store:
        stored: Value = value.store[name]
        return stored
    if isinstance(value.cls, Class):
        for owner in classes.mro(value.cls):
            if name in owner.store:
                member: Value = owner.store[name]
                if not isinstance(member, Function):
                    return member
                bound = classes.bind(member, value, owner)
                kinds = {d.name for d in member.decorators if isinstance(d, Ref)}
                if kinds & {"builtins.property", "functools.cached_property", "torch.jit.unused"} and kinds & {
                    "builtins.property",
                    "functools.cached_property",
                }:
                    return calls.call(run, bound, [], {}, node)
                return bound
        if name == "__class__":
            return value.cls
    return None


def _super_attribute(run: Interpreter, value: Super, name: str) -> Value:
    receiver = value.receiver
    cls = receiver.cls if isinstance(receiver, Instance) else receiver
    order = classes.mro(cls)
    if value.owner in order:
        order = order[order.index(value.owner) + 1 :]
    for owner in order:
        found = owner.store.get(name)
        if isinstance(found, Function):
            return classes.bind(found, receiver, owner)
    return Bound(receiver, f"super.{name}")


def set_attribute(run: Interpreter, target: Value, name: str, value: Value, node: Any) -> None:
    for option in options(target):
        if isinstance(option, Instance):
            run.library.attribute_set(option, name, value, node)
            weak = isinstance(target, Choice)
            run.heap.put(option.store, name, join(option.store.get(name, MISSING), value) if weak else value)
        elif isinstance(option, (ModuleRef, Class)):
            run.heap.put(option.store, name, value)
        else:
            run.library.attribute_set(option, name, value, node)


def get_item(run: Interpreter, value: Value, index: Value, node: Any) -> Value:
    if isinstance(value, Choice):
        return choice(get_item(run, option, index, node) for option in value.options)
    if isinstance(index, Choice):
        return choice(get_item(run, value, option, node) for option in index.options)
    if isinstance(value, Seq):
        number = constant(index)
        if isinstance(number, int) and not value.open and -len(value.items) <= number < len(value.items):
            return value.items[number]
        if isinstance(index, Seq) and index.kind == "slice":
            return _slice(value, index)
        return element(run, value)
    if isinstance(value, Dict):
        return _dict_item(run, value, index)
    if isinstance(value, Class) and "\0members" in value.store and isinstance(index, Const):
        return get_attribute(run, value, str(index.value), node)
    return run.library.item(value, index, node)


def _slice(value: Seq, index: Seq) -> Value:
    bounds: list[Any] = [constant(b) if isinstance(b, Const) else "?" for b in index.items]
    if not value.open and all(b is None or isinstance(b, int) for b in bounds):
        return seq(value.items[slice(*bounds)], value.kind)
    return seq(value.items, value.kind, open=True)


def _dict_item(run: Interpreter, value: Dict, index: Value) -> Value:
    if value.kind == "optimizer_state":
        return run.library.param_state(value)
    key = key_of(index)
    if key is not MISSING and key in value.store:
        stored: Value = value.store[key]
        return stored
    if ANY in value.store and not (key is not MISSING and value.kind == "param_state"):
        found: Value = value.store[ANY]
        return found
    if key is MISSING and value.store and value.kind != "param_state":
        return choice(value.store.values())
    return unknown()


def key_of(index: Value) -> Any:
    """The key that a value is in the store of a dict; MISSING where it is not known."""
    if isinstance(index, Instance) and "\0enum" in index.store and isinstance(index.cls, Class):
        return "\0enum " + index.cls.name + "." + index.store["\0enum"]
    if isinstance(index, Const) and isinstance(index.value, (str, int, float, bool, type(None))):
        return index.value
    return MISSING


def any_key(value: Dict) -> Opaque:
    """A key of a dict that a loop runs over: what is stored under it is stored under each."""
    return Opaque({"\0key of": value.store}, marks=frozenset({"string"}))


def set_item(run: Interpreter, target: Value, index: Value, value: Value, node: Any) -> None:
    for option in options(target):
        if isinstance(option, Dict):
            run.library.stored(option, constant(index), value, node)
            key = key_of(index)
            if key is MISSING:
                every = isinstance(index, Opaque) and index.store.get("\0key of") is option.store
                run.heap.put(option.store, ANY, value if every else join(option.store.get(ANY, MISSING), value))
            else:
                run.heap.put(option.store, key, value)
        elif isinstance(option, Seq):
            number = constant(index)
            items = list(option.items)
            if isinstance(number, int) and not option.open and -len(items) <= number < len(items):
                items[number] = value
            else:
                items = [join(item, value) for item in items]
            run.heap.put(option.store, "items", tuple(items))
        else:
            run.library.item_set(option, index, value, node)


def assign(run: Interpreter, target: Any, value: Value) -> None:
    """Binds a value to a name, attribute, subscript or pattern of those."""
    kind = type(target)
    if kind is cst.Name:
        store = run.scope.store
        if target.value in store.get("\0globals", ()):
            store = run.scope.top.store
        run.heap.put(store, target.value, value)
    elif kind is cst.Attribute:
        set_attribute(run, run.eval(target.value), target.attr.value, value, target)
    elif kind is cst.Subscript:
        set_item(run, run.eval(target.value), index_of(run, target), value, target)
    elif kind is cst.Tuple or kind is cst.List:
        _unpack(run, [e.value for e in target.elements], target.elements, value)
    elif kind is cst.StarredElement:
        assign(run, target.value, value)


def _unpack(run: Interpreter, targets: list[Any], elements: Sequence[Any], value: Value) -> None:
    starred = [i for i, e in enumerate(elements) if type(e) is cst.StarredElement]
    held = run.library.children(value) if isinstance(value, Instance) else None
    value = seq(held) if held is not None else value
    if isinstance(value, Seq) and not value.open and not starred and len(value.items) == len(targets):
        for target, item in zip(targets, value.items, strict=True):
            assign(run, target, item)
        return
    if isinstance(value, Choice):
        rows = [o for o in value.options if isinstance(o, Seq) and len(o.items) == len(targets) and not o.open]
        if len(rows) == len(value.options):
            for number, target in enumerate(targets):
                assign(run, target, choice(row.items[number] for row in rows))
            return
    item = element(run, value)
    for number, target in enumerate(targets):
        if isinstance(value, Seq) and not value.open and starred and number < starred[0]:
            assign(run, target, value.items[number] if number < len(value.items) else unknown())
        elif number in starred:
            assign(run, target, seq([item], open=True))
        else:
            assign(run, target, item)


def index_of(run: Interpreter, node: cst.Subscript) -> Value:
    parts = [_one_index(run, element.slice) for element in node.slice]
    return parts[0] if len(parts) == 1 else seq(parts, "tuple")


def _one_index(run: Interpreter, part: Any) -> Value:
    if type(part) is cst.Index:
        return run.eval(part.value)
    ends = [run.eval(e) if e is not None else NONE for e in (part.lower, part.upper, part.step)]
    return seq(ends, "slice")
