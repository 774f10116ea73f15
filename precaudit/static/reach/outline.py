"""Divides a file by indentation into statements, functions, classes and methods, with the names that each uses."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from precaudit.static.reach.words import code_of, triggers

HEAD = r"(?P<decorator>@)|(?:async[ \t]+)?def[ \t]+(?P<function>\w+)|class[ \t]+(?P<klass>\w+)|[^\s)\]}\\]"
TOP = re.compile(f"^(?:{HEAD})", re.MULTILINE)
"""The beginning of a top-level statement: a line that is neither indented nor closes a bracket."""
NESTED = re.compile(r"^([ \t]+)(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
ASSIGNMENT = re.compile(r"^(\w+)[ \t]*(?::[^=\n]+)?=[^=]", re.MULTILINE)
WORDS = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|([A-Za-z_]\w*)")


class Part(NamedTuple):
    """A stretch of whole lines."""

    name: str
    """Of the function, method or class, or of what is assigned to at the top level; empty for other statements."""
    owner: str
    """The class that a method belongs to."""
    kind: str
    """"function", "method", "class" for its head and the statements in its body, "statement" for any other."""
    start: int
    stop: int
    """Offsets of characters."""
    words: frozenset[str]
    """The names in its code."""
    live: bool
    """Whether a finding can start from it."""


class Outline:
    """The parts of one file, in order."""

    def __init__(self, text: str) -> None:
        self.code = code_of(text)
        self.lines = text.count("\n")
        self._triggers = triggers(self.code)
        self.parts = list(self._parts())

    def _parts(self) -> Iterator[Part]:
        for name, kind, start, stop in _stretches(self.code, TOP, 0, len(self.code)):
            if kind == "class":
                yield from self._class(name, start, stop)
            elif kind == "function":
                yield self._part(name, "", kind, start, stop)
            else:
                target = ASSIGNMENT.match(self.code, start, stop)
                yield self._part(target[1] if target else "", "", kind, start, stop)

    def _class(self, name: str, start: int, stop: int) -> Iterator[Part]:
        """The head of a class, its statements and its methods."""
        body = re.compile(r":[ \t\r]*\n(?:[ \t\r]*\n)*([ \t]+)").search(self.code, start, stop)
        if body is None:
            yield self._part(name, "", "class", start, stop)
            return
        first = body.start(1)
        yield self._part(name, "", "class", start, first)
        for member, kind, begin, end in _stretches(self.code, _member(body[1]), first, stop):
            if kind == "function":
                yield self._part(member, name, "method", begin, end)
            else:
                yield self._part(name, "", "class", begin, end)

    def _part(self, name: str, owner: str, kind: str, start: int, stop: int) -> Part:
        words = frozenset(WORDS.findall(self.code, start, stop))
        at = bisect_left(self._triggers, start)
        live = at < len(self._triggers) and self._triggers[at] < stop
        return Part(name, owner, kind, start, stop, words, live)

    def nested(self, part: Part) -> Iterator[Part]:
        """The functions and classes inside other statements, such as `if`."""
        for head in NESTED.finditer(self.code, part.start, part.stop):
            after = _outside(len(head[1])).search(self.code, head.end(), part.stop)
            yield self._part(head[2], "", "function", head.start(), after.start() if after else part.stop)

    def loose(self, part: Part) -> bool:
        """Whether a finding can start in a statement outside of the functions and classes in it."""
        inner = [(each.start, each.stop) for each in self.nested(part)]
        first, last = (bisect_left(self._triggers, at) for at in (part.start, part.stop))
        return not all(any(start <= at < stop for start, stop in inner) for at in self._triggers[first:last])


@cache
def _member(indent: str) -> re.Pattern[str]:
    """The beginning of a statement in the body of a class."""
    return re.compile(f"^{indent}(?:{HEAD})", re.MULTILINE)


@cache
def _outside(indent: int) -> re.Pattern[str]:
    """The beginning of a statement that is indented no more than this."""
    return re.compile(rf"^[ \t]{{0,{indent}}}[^\s)\]}}]", re.MULTILINE)


def _stretches(code: str, heads: re.Pattern[str], start: int, stop: int) -> Iterator[tuple[str, str, int, int]]:
    """(name, kind, start, end) of each statement; a definition begins at its first decorator."""
    found: list[tuple[str, str, int]] = []
    decorated = False
    for match in heads.finditer(code, start, stop):
        name = match["function"] or match["klass"] or ""
        kind = "function" if match["function"] else "class" if match["klass"] else "statement"
        if decorated:
            if name:
                found[-1] = (name, kind, found[-1][2])
                decorated = False
        else:
            found.append((name, kind, match.start()))
            decorated = match["decorator"] is not None
    if not found or found[0][2] > start:
        found.insert(0, ("", "statement", start))
    ends = [*(begin for _, _, begin in found[1:]), stop]
    for (name, kind, begin), end in zip(found, ends, strict=True):
        yield name, kind, begin, end
