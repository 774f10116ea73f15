"""Tells which functions of a file are worth running on their own: those that lead to a low-precision word."""

from __future__ import annotations

from functools import lru_cache

from precaudit.static.reach.outline import Outline, Part
from precaudit.static.reach.words import trains

COMMON = frozenset(
    """
    forward __init__ __call__ step main update get train __len__ __getitem__
    training_step configure_optimizers optimizer_step configure_model setup compute_loss
    """.split()
)
"""Names that too many methods share for a call of one to mean anything; a trainer calls them without naming them."""
HOOK = "on_"
"""What the names of hooks begin with, which a trainer calls as well: of a callback all of them are run together."""
LONG = 400
"""Lines from which a class that only uses a relevant class is left out: a library's models use each other endlessly."""


def live_names(outline: Outline) -> frozenset[str] | None:
    """Of a long file that trains nothing: its classes and functions, methods as `Class.method`, that have a trigger.

    None for any other file, whose functions may matter for what they make before there is anything low.
    """
    if outline.lines < LONG or trains(outline.code.encode()):
        return None
    named: set[str] = set()
    units: list[Part] = []
    for part in outline.parts:
        units += outline.nested(part) if part.kind == "statement" else [part]
        if part.live and part.kind == "statement":
            if part.name:
                named.add(part.name)
            elif outline.loose(part):
                return None
    return frozenset(
        f"{part.owner}.{part.name}" if part.owner else part.name for part in units if part.live or part.words & named
    )


def relevant_names(outline: Outline) -> set[str]:
    """Names of functions and classes whose code holds a trigger, or which call one that does.

    An approximation by indentation and by name; what it leaves out is only not run with unknown arguments.
    """
    narrow = outline.lines >= LONG
    classes = {part.name for part in outline.parts if part.kind == "class"}
    functions = {part.name for part in outline.parts if part.kind == "function"}
    users: dict[str, list[tuple[str, bool]]] = {}
    relevant: set[str] = set()
    waiting: list[str] = []
    blocks = _blocks(outline)
    defined = {name for name, _, _ in blocks}
    for name, members, part in blocks:
        if part.live:
            waiting.append(name)
        for word in part.words & defined:
            users.setdefault(word, []).append((name, members))
    while waiting:
        name = waiting.pop()
        if name in relevant:
            continue
        relevant.add(name)
        if name in COMMON and name not in functions:
            continue
        for user, member in users.get(name, ()):
            if not (narrow and member and name in classes):
                waiting.append(user)
    return relevant


@lru_cache(maxsize=64)
def leads_to(raw: bytes) -> frozenset[str]:
    """The names in a module from which something low may come; a module is asked for by many."""
    return frozenset(relevant_names(Outline(raw.decode("utf-8", "replace"))))


def _blocks(outline: Outline) -> list[tuple[str, bool, Part]]:
    """(name, whether of a class or in one, part): a method counts for itself and for its class."""
    found: list[tuple[str, bool, Part]] = []
    for part in outline.parts:
        if part.kind == "method":
            found += [(part.owner, True, part), (part.name, True, part)]
        elif part.kind != "statement":
            found.append((part.name, part.kind == "class", part))
        elif part.name != "__all__":
            if part.name:
                found.append((part.name, False, part))
            found += [(inner.name, True, inner) for inner in outline.nested(part)]
    return found
