"""Tells which functions of a file are worth running on their own: those that lead to a low-precision word."""

from __future__ import annotations

import re

from precaudit.static.prefilter import PROSE as PROSE_BYTES
from precaudit.static.prefilter import TRIGGERS

DEFINITION = re.compile(r"(?:^[ \t]*@.*\n)*^([ \t]*)(?:async[ \t]+)?(def|class)[ \t]+(\w+)", re.MULTILINE)
ASSIGNMENT = re.compile(r"^(\w+)[ \t]*(?::[^=\n]+)?=[^=].*(?:\n[ \t)\]}].*)*", re.MULTILINE)
PROSE = re.compile(PROSE_BYTES.pattern.decode(), PROSE_BYTES.flags & ~re.ASCII)
STRING = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
TRIGGER = re.compile(TRIGGERS.pattern.decode())
COMMON = frozenset(
    {"forward", "__init__", "__call__", "step", "main", "update", "get", "train", "__len__", "__getitem__"}
)
"""Names that too many methods share for a call of one to mean anything."""


LONG = 400
"""Lines from which a class that only uses a relevant class is left out: a library's models use each other endlessly."""


def relevant_names(text: str) -> set[str]:
    """Names of functions and classes whose text holds a trigger, or which call one that does.

    An approximation by indentation and by name; what it leaves out is only not run with unknown arguments.
    """
    blocks = _blocks(text)
    broad = text.count("\n") < LONG
    functions = {name for name, narrow, _ in blocks if not narrow}
    relevant = {name for name, _, body in blocks if TRIGGER.search(PROSE.sub("", body))}
    classes = {name for name, is_class, _ in blocks if is_class}
    words = [(name, is_class, used_names(body)) for name, is_class, body in blocks if name not in relevant]
    grown = True
    while grown:
        calls = relevant - (COMMON - functions)
        narrow = calls if broad else calls - classes
        more = {name for name, is_class, used in words if used & ((narrow if is_class else calls) - {name})}
        grown = bool(more - relevant)
        relevant |= more
    return relevant


def used_names(text: str) -> set[str]:
    """The words of a text outside its comments and strings."""
    return set(re.findall(r"[A-Za-z_]\w*", STRING.sub("", PROSE.sub("", text))))


def _blocks(text: str) -> list[tuple[str, bool, str]]:
    """(name, whether a class, text) of each function, class (with its methods) and top-level assignment."""
    heads = [(m.start(), len(m[1].expandtabs()), m[3], m[2] == "class") for m in DEFINITION.finditer(text)]
    found = []
    for number, (start, indent, name, is_class) in enumerate(heads):
        end = next((s for s, i, _, _ in heads[number + 1 :] if i <= indent), len(text))
        # A method belongs to its class: it is as narrow as the class is.
        found.append((name, is_class or indent > 0, text[start:end]))
    found += [(m[1], False, m[0]) for m in ASSIGNMENT.finditer(text) if m[1] != "__all__"]
    return found
