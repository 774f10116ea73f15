"""What Python's record classes give: dataclasses, attrs, pydantic models, NamedTuples, enumerations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls, classes, objects
from precaudit.static.language.values import (
    ANY,
    NONE,
    Class,
    Const,
    Dict,
    Function,
    Instance,
    Ref,
    Seq,
    Value,
    choice,
    constant,
    options,
    seq,
    unknown,
)
from precaudit.static.overlays import Call

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

FIELD, TUPLE, TUPLE_CLASS = "dataclasses.field", "collections.namedtuple", "collections.namedtuple()"
MAX_NESTED = 6
"""Records inside one another that are followed."""


def field(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`field(default=…)`, `Field(…)`: a default that each new object takes, or a function that makes one for it."""
    factory = kwargs.get("default_factory", kwargs.get("factory"))
    default = args[0] if args else kwargs.get("default")
    return Instance(Ref(FIELD), {"factory": factory} if factory is not None else {"default": default})


def default_of(run: Run, declared: Value, node: Any) -> Value | None:
    """What a new object holds in a field that was declared so and is not given; None where it has no default."""
    if not isinstance(declared, Instance) or declared.library != FIELD:
        return declared
    factory = declared.store.get("factory")
    if factory is not None:
        return calls.call(run.interpreter, factory, [], {}, node)
    default: Value | None = declared.store.get("default")
    return None if isinstance(default, Const) and default.value is ... else default


def class_made(run: Run, cls: Class) -> None:
    """The members of an enumeration are objects, each with its name and value."""
    if not any(base.rpartition(".")[2] in ENUMS for base in classes.library_bases(cls)):
        return
    for name, value in list(cls.store.items()):
        if isinstance(name, str) and not name.startswith(("_", "\0")) and not isinstance(value, (Function, Class)):
            given = Const(name.lower()) if isinstance(value, Instance) and value.library == "enum.auto" else value
            named: dict[Any, Any] = {"\0enum": name, "name": Const(name), "value": given, "_value_": given}
            cls.store[name] = Instance(cls, named)
            cls.store["\0members"] = (*cls.store.get("\0members", ()), cls.store[name])


ENUMS = frozenset({"Enum", "StrEnum", "IntEnum"})


def auto(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(Ref("enum.auto"))


def looked_up(cls: Class, args: list[Value], kwargs: dict[str, Value]) -> Value | None:
    """`Precision("bf16")`: the member with that value, any of them where it is not known; a TypedDict is a dict.

    None of another class.
    """
    if any(base.endswith(".TypedDict") for base in classes.library_bases(cls)):
        return Dict({ANY: unknown()} if args or "\0rest" in kwargs else dict(kwargs))
    members: tuple[Instance, ...] = cls.store.get("\0members", ())
    if not members or len(args) != 1:
        return None
    if isinstance(args[0], Instance):
        return args[0]
    fit = [m for m in members if constant(m.store["value"]) == constant(args[0])]
    return choice(fit if isinstance(args[0], Const) and fit else members)


def method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value | None:
    """A method that a record class has from its library; None for any other."""
    if name in ("_replace", "model_copy", "copy") and not args:
        changes = kwargs.get("update") if name != "_replace" else Dict(dict(kwargs))
        return changed(run, receiver, changes.store if isinstance(changes, Dict) else {}, node)
    if name in ("model_dump", "_asdict", "dict", "to_dict") and isinstance(receiver.cls, (Class, Ref)):
        return as_dict(receiver)
    return None


def changed(run: Run, record: Instance, changes: dict[Any, Any], node: Any) -> Value:
    """A new object with some fields changed; what was computed from them is computed again."""
    store = {**record.store, **{k: v for k, v in changes.items() if isinstance(k, str) and not k.startswith("\0")}}
    made = Instance(record.cls, store)
    post = classes.find_method(record.cls, "__post_init__")
    if post is not None:
        calls.call(run.interpreter, classes.bind(post[0], made, post[1]), [], {}, node)
    return made


def replaced(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`dataclasses.replace(record, field=…)`."""
    if not args or "\0rest" in kwargs or not all(isinstance(option, Instance) for option in options(args[0])):
        return unknown()
    return choice(changed(run, o, kwargs, node) for o in options(args[0]) if isinstance(o, Instance))


def dictionary(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`asdict(record)`, `vars(args)`."""
    record = args[0] if args else unknown()
    if isinstance(record, Ref):
        return Ref(f"{record.name}.__dict__")
    return as_dict(record) if isinstance(record, Instance) else unknown()


def as_dict(record: Instance, depth: int = 0) -> Dict:
    """The fields of a record by name, with records in them as dicts too."""
    declared = [owner.store for owner in reversed(classes.mro(record.cls))]
    fields = {name: store[name] for store in declared for name in store.get("\0annotations", ()) if name in store}
    held = {name: v for name, v in {**fields, **record.store}.items() if isinstance(name, str) and name[:1] != "\0"}
    if depth < MAX_NESTED:
        held = {name: as_dict(v, depth + 1) if _is_record(v) else v for name, v in held.items()}
    if ANY in record.store:
        held[ANY] = record.store[ANY]
    return Dict(held)


def _is_record(value: Value) -> bool:
    if not isinstance(value, Instance) or not isinstance(value.cls, Class) or "\0annotations" not in value.cls.store:
        return False
    return not any(base.startswith("torch.") for base in classes.library_bases(value.cls))


def named_tuple(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`namedtuple("Config", "lr dtype")`: a class by its field names."""
    given = args[1] if len(args) > 1 else kwargs.get("field_names", NONE)
    text = constant(given)
    names = text.replace(",", " ").split() if isinstance(text, str) else []
    if isinstance(given, Seq) and not given.open:
        names = [item.value for item in given.items if isinstance(item, Const) and isinstance(item.value, str)]
    return Instance(Ref(TUPLE_CLASS), {"\0names": tuple(names)}) if names else unknown()


def tuple_of(cls: Instance, args: list[Value], kwargs: dict[str, Value]) -> Instance:
    """An object of a class that `namedtuple` made."""
    names = cls.store["\0names"]
    return Instance(Ref(TUPLE), {**dict.fromkeys(names, unknown()), **dict(zip(names, args, strict=False)), **kwargs})


def items(value: Instance) -> list[Value] | None:
    """The items of a named tuple in their order; None of any other object."""
    if value.library == TUPLE:
        return list(value.store.values())
    if not isinstance(value.cls, Class) or not any(b.endswith(".NamedTuple") for b in classes.library_bases(value.cls)):
        return None
    held = as_dict(value).store
    return [held.get(name) or unknown() for name in classes.fields(value.cls)]


def item(run: Run, value: Instance, index: Value, node: Any) -> Value:
    """`record[0]` of a named tuple."""
    held = items(value)
    return objects.get_item(run.interpreter, seq(held, "tuple"), index, node) if held is not None else unknown()


CALLS: Mapping[str, Call] = {
    **dict.fromkeys(("dataclasses.field", "attrs.field", "attr.ib", "pydantic.Field"), field),
    **dict.fromkeys(("dataclasses.replace", "attrs.evolve", "copy.replace"), replaced),
    **dict.fromkeys(("dataclasses.asdict", "attrs.asdict", "builtins.vars"), dictionary),
    "enum.auto": auto,
    "collections.namedtuple": named_tuple,
}
