"""Tells which functions of a file are worth running on their own: those that lead to a low-precision word."""

from __future__ import annotations

from precaudit.static.outline import Outline, Part

COMMON = frozenset(
    """
    forward __init__ __call__ step main update get train __len__ __getitem__
    training_step configure_optimizers optimizer_step configure_model setup compute_loss
    """.split()
)
"""Names that too many methods share for a call of one to mean anything; a trainer calls them without naming them."""
LONG = 400
"""Lines from which a class that only uses a relevant class is left out: a library's models use each other endlessly."""


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
    for name, members, part in _blocks(outline):
        if part.live:
            waiting.append(name)
        for word in part.words - {name}:
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
