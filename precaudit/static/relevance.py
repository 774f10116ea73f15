"""Tells which functions of a file are worth running on their own: those that lead to a low-precision word."""

from __future__ import annotations

import re

from precaudit.static.prefilter import TRIGGERS

DEFINITION = re.compile(r"(?:^[ \t]*@.*\n)*^([ \t]*)(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
ASSIGNMENT = re.compile(r"^(\w+)[ \t]*(?::[^=\n]+)?=[^=].*(?:\n[ \t)\]}].*)*", re.MULTILINE)
TRIGGER = re.compile(TRIGGERS.pattern.decode())
COMMON = frozenset(
    {"forward", "__init__", "__call__", "step", "main", "update", "get", "train", "__len__", "__getitem__"}
)
"""Names that too many functions share for a call of one to mean anything."""


def relevant_names(text: str) -> set[str]:
    """Names of functions and classes whose text holds a trigger, or which call one that does.

    An approximation by indentation and by name; what it leaves out is only not run with unknown arguments.
    """
    blocks = _blocks(text)
    relevant = {name for name, body in blocks if TRIGGER.search(body)}
    words = [(name, set(re.findall(r"\w+", body))) for name, body in blocks if name not in relevant]
    grown = True
    while grown:
        callable_ = relevant - COMMON
        more = {name for name, used in words if name not in relevant and used & callable_ - {name}}
        grown = bool(more - relevant)
        relevant |= more
    return relevant


def _blocks(text: str) -> list[tuple[str, str]]:
    """(name, text) of each function, class (with its methods) and top-level assignment."""
    heads = [(m.start(), len(m[1].expandtabs()), m[2]) for m in DEFINITION.finditer(text)]
    found = []
    for number, (start, indent, name) in enumerate(heads):
        end = next((s for s, i, _ in heads[number + 1 :] if i <= indent), len(text))
        found.append((name, text[start:end]))
    found += [(m[1], m[0]) for m in ASSIGNMENT.finditer(text)]
    return found
