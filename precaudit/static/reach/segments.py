"""Shortens a file before it is parsed: by what no finding can depend on, and by bodies until their functions run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from precaudit.static.reach.outline import Outline, Part
from precaudit.static.reach.relevance import COMMON

IMPLICIT = re.compile(r"^(?:__\w+__|forward)$")
"""Methods that run without being named."""
INDENT = re.compile(r"[ \t]*")
WHOLE = 60
"""Lines up to which a file is parsed as it is."""
SHORT = 200
"""Characters up to which a body is parsed with its function."""
FIRST = re.compile(r"^([ \t]+)\S", re.MULTILINE)
"""The first statement of a body."""
DEF = re.compile(r"^[ \t]*(?:async[ \t]+)?def\b", re.MULTILINE)
MARK = "left out by precaudit:"
LEFT_OUT = re.compile(rf'^[ \t]*"""{MARK} (\d+)\n*"""\n?', re.MULTILINE)
"""Stands for the stretch of this number."""
HEAD = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|(?P<bracket>[()\[\]{}])|(?P<colon>:)(?P<alone>[ \t\r]*\n)?")


class LeftOut(NamedTuple):
    """Whole lines that were left out."""

    text: str
    line: int
    """The first of them."""


class Reduced:
    """The text with a string of as many lines for each stretch that is left out, and those stretches by number."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self._pieces: list[str] = []
        self._line = 1

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        """Appends whole lines."""
        self._pieces.append(piece)
        self._line += piece.count("\n")

    def leave_out(self, piece: str, indent: str) -> None:
        """Appends a statement that stands for whole lines."""
        ends = piece.count("\n")
        inside, end = "\n" * (ends - 1), "\n" if ends else ""
        self._pieces.append(f'{indent}"""{MARK} {len(self.left_out)}{inside}"""{end}')
        self.left_out.append(LeftOut(piece, self._line))
        self._line += ends


def reduce(text: str, outline: Outline, roots: Iterable[str]) -> Reduced | None:
    """The text without what neither its statements nor the definitions named `roots` lead to; None to parse it all."""
    if outline.lines < WHOLE or "\f" in text or "\r" in text.replace("\r\n", ""):
        return None
    parts, kept = outline.parts, _Needed(outline, roots).kept
    classes = {parts[at].name for at in kept if parts[at].kind == "class"}
    reduced = Reduced()
    for (needed, _), group in groupby(range(len(parts)), lambda at: (at in kept, _class_of(parts[at]) & classes)):
        together = [parts[at] for at in group]
        if needed:
            for part in together:
                _add(reduced, text, outline.code, part)
        else:
            start = together[0].start
            indent = INDENT.match(text, start)
            reduced.leave_out(text[start : together[-1].stop], indent[0] if indent is not None else "")
    return reduced


def _add(reduced: Reduced, text: str, code: str, part: Part) -> None:
    """Appends a part, of a long function its head and what stands for its body."""
    body = _body_of(code, part)
    indent = FIRST.search(code, body, part.stop)
    if indent is None:
        reduced.add(text[part.start : part.stop])
    else:
        reduced.add(text[part.start : body])
        reduced.leave_out(text[body : part.stop], indent[1])


def _body_of(code: str, part: Part) -> int:
    """Where the body of a function begins that is left out for now; the end of the part where there is none."""
    if part.kind in ("function", "method"):
        head = DEF.search(code, part.start, part.stop)
        depth = 0
        for match in HEAD.finditer(code, head.start() if head else part.stop, part.stop):
            if match["bracket"]:
                depth += 1 if match["bracket"] in "([{" else -1
            elif match["colon"] and not depth:
                return match.end() if match["alone"] and part.stop - match.end() > SHORT else part.stop
    return part.stop


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
                waiting |= part.words & self._named.keys()
        while waiting:
            for at in self._lead_to(waiting):
                self.kept.add(at)
                waiting |= self.parts[at].words & self._named.keys()
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


def _class_of(part: Part) -> set[str]:
    """The class whose body a part stands in or whose head it is."""
    return {part.owner or part.name} if part.kind in ("method", "class") else set()
