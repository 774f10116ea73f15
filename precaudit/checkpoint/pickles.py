"""Reads a pickle as data: every opcode of the format is understood, and nothing that it names is imported or called.

A pickle is a program for a stack machine. Here a global is its name, a call is a record of what would be called,
and so whatever a file asks for, nothing of it runs. Source of the opcodes: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from precaudit.checkpoint.leaves import Unreadable


class Global(NamedTuple):
    """A class or function by name, `collections.OrderedDict`; never the object itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a call would have made: the callee, its arguments, and what would then have been put into the object."""

    callee: Any
    args: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)


class Persistent(NamedTuple):
    """A reference to something outside of the pickle; torch refers to its storages so."""

    key: Any


class Pickle(NamedTuple):
    """The value of a pickle, and what `pickle.load` would have called to make it, each once."""

    value: Any
    called: tuple[Global, ...]


MARK = object()


def read(file: BinaryIO | bytes) -> Pickle:
    """The first pickle in `file`. Raises Unreadable for bytes that are not a whole pickle."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return Pickle(machine.pop(), tuple(dict.fromkeys(machine.called)))
            machine.do(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise Unreadable(f"its pickle is broken or cut short ({reason[:80] or type(error).__name__})") from None
    raise Unreadable("its pickle is cut short")


LARGEST_INTEGER = 4096
"""Bits. Seeds and hashes have a few hundred; text of much larger ones takes minutes to make."""


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.called: list[Global] = []

    def do(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            if isinstance(argument, int) and argument.bit_length() > LARGEST_INTEGER:
                raise ValueError(f"an integer of {argument.bit_length() // 8:,} bytes")
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in STORES:
            self.memo[int(argument)] = self.stack[-1]
        elif name in FETCHES:
            self.stack.append(self.memo[int(argument)])
        else:
            ACTIONS[name](self, argument)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark stands where a value should")
        return value

    def to_mark(self) -> list[Any]:
        """The values above the topmost mark, which is taken away with them."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is MARK:
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise ValueError("no mark on the stack")

    def call(self, callee: Any, args: Any) -> None:
        if isinstance(callee, Global):
            self.called.append(callee)
        self.stack.append(Made(callee, args))

    # ---- one method per opcode that is more than a push

    def mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def nothing(self, _: Any) -> None:
        """PROTO, FRAME: how the bytes are packed."""

    def drop(self, _: Any) -> None:
        self.stack.pop()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def drop_to_mark(self, _: Any) -> None:
        self.to_mark()

    def global_by_argument(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(module, name))

    def global_by_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a global without a name")
        self.stack.append(Global(module, name))

    def extension(self, argument: Any) -> None:
        self.stack.append(Global("copyreg", f"extension {argument}"))

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def dict_to_mark(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append({_hashable(key): value for key, value in zip(values[::2], values[1::2], strict=True)})

    def frozenset_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def tuple_1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def tuple_2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def tuple_3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def append(self, _: Any) -> None:
        value = self.pop()
        _members(self.stack[-1]).append(value)

    def extend(self, _: Any) -> None:
        values = self.to_mark()
        _members(self.stack[-1]).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _items(self.stack[-1])[_hashable(key)] = value

    def set_items(self, _: Any) -> None:
        values = self.to_mark()
        items = _items(self.stack[-1])
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_hashable(key)] = value

    def reduce(self, _: Any) -> None:
        args, callee = self.pop(), self.pop()
        self.call(callee, args)

    def new_with_keywords(self, _: Any) -> None:
        keywords, args, callee = self.pop(), self.pop(), self.pop()
        self.call(callee, args)
        self.stack[-1].items.update(keywords if isinstance(keywords, dict) else {})

    def instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.call(Global(module, name), tuple(self.to_mark()))

    def object_to_mark(self, _: Any) -> None:
        callee, *args = self.to_mark()
        self.call(callee, tuple(args))

    def build(self, _: Any) -> None:
        state = self.pop()
        made = self.stack[-1]
        if isinstance(made, Made):
            made.state = state

    def persistent_by_argument(self, argument: Any) -> None:
        self.stack.append(Persistent(argument))

    def persistent_by_stack(self, _: Any) -> None:
        self.stack.append(Persistent(self.pop()))


def _members(container: Any) -> list[Any]:
    if isinstance(container, Made):
        return container.members
    if isinstance(container, list):
        return container
    raise ValueError("an item for something that is no list")


def _items(container: Any) -> dict[Any, Any]:
    if isinstance(container, Made):
        return container.items
    if isinstance(container, dict):
        return container
    raise ValueError("an item for something that is no dict")


def _hashable(key: Any) -> Hashable:
    """The key; one that is nested has its type's name instead, for its hash would follow it as deep as it goes."""
    plain = (str, int, float, bytes, type(None), Global, Made)
    if isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(part, plain) for part in key)):
        return key
    return repr(type(key))


PUSHED = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
"""Opcodes whose argument is the value."""
CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "NEXT_BUFFER": b""}
EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
FETCHES = frozenset({"GET", "BINGET", "LONG_BINGET"})
ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "MEMOIZE": _Machine.memoize, "PROTO": _Machine.nothing, "FRAME": _Machine.nothing,
    "READONLY_BUFFER": _Machine.nothing, "POP": _Machine.drop, "DUP": _Machine.duplicate,
    "POP_MARK": _Machine.drop_to_mark, "GLOBAL": _Machine.global_by_argument,
    "STACK_GLOBAL": _Machine.global_by_stack, "EXT1": _Machine.extension, "EXT2": _Machine.extension,
    "EXT4": _Machine.extension, "TUPLE": _Machine.tuple_to_mark, "LIST": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark, "FROZENSET": _Machine.frozenset_to_mark, "TUPLE1": _Machine.tuple_1,
    "TUPLE2": _Machine.tuple_2, "TUPLE3": _Machine.tuple_3, "APPEND": _Machine.append, "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend, "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.reduce, "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance, "OBJ": _Machine.object_to_mark, "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_by_argument, "BINPERSID": _Machine.persistent_by_stack,
}  # fmt: skip
"""Every other opcode, and what it does here."""
