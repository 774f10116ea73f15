"""What the methods of Python's own lists, dicts and strings give, as far as their items are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precaudit.static.language import folding, objects
from precaudit.static.language.values import ANY, NONE, Choice, Const, Dict, Seq, Value, choice, constant, seq, unknown
from precaudit.static.overlays.run import Run


def method(run: Run, receiver: Seq | Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A method of a list, a tuple, a set or a dict."""
    if isinstance(receiver, Dict):
        act = _OF_DICTS.get(name)
        return act(run, receiver, name, args, kwargs, node) if act is not None else unknown()
    put = run.interpreter.heap.put
    if name in ("append", "add") and args:
        put(receiver.store, "items", (*receiver.items[:64], args[0]))
        if run.interpreter.loops:
            put(receiver.store, "open", True)
        return NONE
    if name == "extend" and args:
        items = objects.concrete(run.interpreter, args[0])
        added = items or [objects.element(run.interpreter, args[0])]
        put(receiver.store, "items", (*receiver.items[:64], *added))
        if items is None:
            put(receiver.store, "open", True)
        return NONE
    if name == "copy":
        return seq(receiver.items, receiver.kind, receiver.open)
    return objects.element(run.interpreter, receiver) if name == "pop" else unknown()


def _views(run: Run, held: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`items()`, `values()`, `keys()`."""
    known = {k: v for k, v in held.store.items() if not (isinstance(k, str) and k.startswith("\0m"))}
    keys = [objects.any_key(held) if k == ANY else Const(k) for k in known]
    if name == "items":
        pairs = [seq(pair, "tuple") for pair in zip(keys, known.values(), strict=True)]
        return seq(pairs, "iterator", open=ANY in held.store)
    return seq(known.values() if name == "values" else keys, "iterator", open=ANY in held.store)


def _got(run: Run, held: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`get(key)`, `setdefault(key, value)`, `pop(key)`."""
    if not args:
        return unknown()
    store = held.store
    if isinstance(args[0], Choice):
        return choice(_got(run, held, name, [option, *args[1:]], {}, node) for option in args[0].options)
    default = args[1] if len(args) > 1 else NONE
    if not isinstance(args[0], Const):
        return choice([*store.values(), default]) if store else unknown()
    key = constant(args[0])
    if key in store:
        found: Value = store[key]
        return found
    if name == "setdefault":
        objects.set_item(run.interpreter, held, args[0], default, node)
        return default
    return default if ANY not in store else unknown()


def _updated(run: Run, held: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`update(other, key=value)`."""
    for value in args:
        if isinstance(value, Dict):
            for key, item in value.store.items():
                objects.set_item(run.interpreter, held, unknown() if key == ANY else Const(key), item, node)
        else:
            objects.set_item(run.interpreter, held, unknown(), unknown(), node)
    for key, item in kwargs.items():
        objects.set_item(run.interpreter, held, Const(key), item, node)
    return NONE


def _copied(run: Run, held: Dict, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Dict(dict(held.store), held.kind)


_OF_DICTS: dict[str, Callable[[Run, Dict, str, list[Value], dict[str, Value], Any], Value]] = {
    **dict.fromkeys(("items", "values", "keys"), _views),
    **dict.fromkeys(("get", "setdefault", "pop"), _got),
    "update": _updated,
    "copy": _copied,
}

OF_STRINGS = frozenset(
    """
    lower upper title casefold strip lstrip rstrip split rsplit replace removeprefix removesuffix startswith endswith
    """.split()
)
"""Methods of a string that give the same each time."""


def of_constant(receiver: Const, name: str, args: list[Value]) -> Value:
    """A method of a string or a number that is known."""
    value = receiver.value
    if isinstance(value, str) and name in OF_STRINGS and all(isinstance(a, Const) for a in args):
        try:
            result = getattr(value, name)(*(constant(a) for a in args))
        except (TypeError, ValueError):
            return unknown("string")
        return seq([Const(r) for r in result]) if isinstance(result, list) else folding.known(result)
    return unknown("string") if isinstance(value, str) else unknown()
