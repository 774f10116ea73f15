"""Leaves out the functions, classes and methods of a file that no finding can depend on, before it is parsed."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from precaudit.static.outline import Outline, Part
from precaudit.static.relevance import COMMON

IMPLICIT = re.compile(r"__\w+__$|forward$")
"""Methods that run without being named."""
INDENT = re.compile(r"[ \t]*")
WHOLE = 60
"""Lines up to which a file is parsed as it is."""


class Reduced(NamedTuple):
    """The text that is left, and for each of its stretches: first line there, first line in the file."""

    text: str
    starts: list[int]
    originals: list[int]

    def original(self, line: int) -> int:
        """The line of the whole file that a line of the reduced text is."""
        at = bisect_right(self.starts, line) - 1
        return self.originals[at] + line - self.starts[at]


def reduce(text: str, outline: Outline, roots: Iterable[str]) -> Reduced | None:
    """The text without what neither its statements nor the definitions named `roots` lead to; None to parse it all."""
    if outline.lines < WHOLE or "\f" in text or "\r" in text.replace("\r\n", ""):
        return None
    kept = _Needed(outline, roots).kept
    return _joined(text, outline.parts, kept) if len(kept) < len(outline.parts) else None


class _Needed:
    """Indices of the parts to which, by name, the roots and the statements lead."""

    def __init__(self, outline: Outline, roots: Iterable[str]) -> None:
        self.parts = outline.parts
        self.kept: set[int] = set()
        self._roots = set(roots)
        self._wanted: set[str] = set()
        self._classes: set[str] = set()
        self._named: dict[str, list[int]] = {}
        self._members: dict[str, list[int]] = {}
        for at, part in enumerate(self.parts):
            self._named.setdefault(part.name, []).append(at)
            self._members.setdefault(part.owner, []).append(at)
        waiting = set(self._roots)
        for at, part in enumerate(self.parts):
            if part.kind == "statement":
                self.kept.add(at)
                waiting |= part.words
        while waiting:
            for at in self._lead_to(waiting):
                self.kept.add(at)
                waiting |= self.parts[at].words
            waiting -= self._wanted

    def _lead_to(self, names: set[str]) -> list[int]:
        """The further parts that these names need."""
        self._wanted |= names
        found = []
        for name in names:
            for at in self._named.get(name, ()):
                part = self.parts[at]
                if part.kind != "method" or part.owner in self._classes:
                    found.append(at)
                if part.kind == "class" and name not in self._classes:
                    self._classes.add(name)
                    found += [m for m in self._members.get(name, ()) if self._runs(self.parts[m])]
        return [at for at in found if at not in self.kept]

    def _runs(self, method: Part) -> bool:
        """Whether a method of a class that is needed may run."""
        common = method.owner in self._roots and method.name in COMMON
        return common or method.name in self._wanted or IMPLICIT.match(method.name) is not None


def _joined(text: str, parts: Sequence[Part], kept: set[int]) -> Reduced:
    pieces: list[str] = []
    starts: list[int] = []
    originals: list[int] = []
    here, there = 1, 1
    for at, part in enumerate(parts):
        piece = text[part.start : part.stop]
        count = piece.count("\n")
        if at in kept:
            pieces.append(piece)
            starts.append(here)
            originals.append(there)
            here += count
            if _bodiless(parts, at, kept):
                pieces.append(INDENT.match(text, part.stop)[0] + "pass\n")  # type: ignore[index]
                starts.append(here)
                originals.append(there)
                here += 1
        there += count
    return Reduced("".join(pieces), starts, originals)


def _bodiless(parts: Sequence[Part], at: int, kept: set[int]) -> bool:
    """Whether this is the head of a class of which nothing else is kept."""
    head = parts[at]
    if head.kind != "class" or (at and _same_class(parts[at - 1], head)):
        return False
    rest = list(takewhile(lambda n: _same_class(parts[n], head), range(at + 1, len(parts))))
    return bool(rest) and kept.isdisjoint(rest)


def _same_class(part: Part, head: Part) -> bool:
    return part.owner == head.name or (part.kind == "class" and part.name == head.name)
