"""Classes of the code under check: their bases, their methods, and methods bound to an object."""

from __future__ import annotations

from precaudit.static.language.values import (
    Class,
    Function,
    Instance,
    Ref,
    Value,
)


def find_method(cls: Value, name: str) -> tuple[Function, Class] | None:
    """The first definition of a method along the base classes, and the class that defines it."""
    for owner in mro(cls):
        found = owner.store.get(name)
        if isinstance(found, Function):
            return found, owner
    return None


def mro(cls: Value, depth: int = 0) -> list[Class]:
    if not isinstance(cls, Class) or depth > 8:
        return []
    order = [cls]
    for base in cls.bases:
        order += [c for c in mro(base, depth + 1) if c not in order]
    return order


def fields(cls: Value) -> list[str]:
    """The annotated names of a class and its bases, in the order in which a generated `__init__` takes them."""
    found: dict[str, None] = {}
    for owner in reversed(mro(cls)):
        found.update(dict.fromkeys(owner.store.get("\0annotations", ())))
    return list(found)


def library_bases(cls: Value) -> list[str]:
    """The imported classes it derives from."""
    if isinstance(cls, Ref):
        return [cls.name]
    return [base.name for owner in mro(cls) for base in owner.bases if isinstance(base, Ref)]


def bind(function: Function, receiver: Value, owner: Class) -> Value:
    kinds = {d.name for d in function.decorators if isinstance(d, Ref)}
    if "builtins.staticmethod" in kinds:
        return Function(function.node, function.scope, function.defaults, owner, None, function.decorators)
    if "builtins.classmethod" in kinds and isinstance(receiver, Instance):
        receiver = receiver.cls
    return Function(function.node, function.scope, function.defaults, owner, receiver, function.decorators)
