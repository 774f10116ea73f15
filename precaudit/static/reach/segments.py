"""Shortens a file before it is parsed: by what no finding can depend on, and by bodies until their functions run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

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
HEAD = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|(?P<bracket>[()\[\]{}])|(?P<colon>:)(?P<alone>[ \t\r]*\n)?")


class Reduced:
    """The text with blank lines for what is left out, and the bodies among that, by their first line."""

    def __init__(self) -> None:
        self.bodies: dict[int, str] = {}
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        """Appends whole lines."""
        self._pieces.append(piece)

    def leave_out(self, piece: str, instead: str = "") -> None:
        """Appends as many blank lines, of which the first may have something that stands for the piece."""
        self._pieces.append(instead + "\n" * piece.count("\n"))

    def leave_body(self, body: str, indent: str, line: int) -> None:
        """Appends what stands for a body, which begins at this line."""
        self.leave_out(body, f"{indent}...")
        self.bodies[line] = body


def reduce(text: str, outline: Outline, roots: Iterable[str]) -> Reduced | None:
    """The text without what neither its statements nor the definitions named `roots` lead to; None to parse it all."""
    if outline.lines < WHOLE or "\f" in text or "\r" in text.replace("\r\n", ""):
        return None
    parts, kept = outline.parts, _Needed(outline, roots).kept
    reduced, line = Reduced(), 1
    for at, part in enumerate(parts):
        if at in kept:
            body = _body_of(outline.code, part)
            indent = FIRST.search(outline.code, body, part.stop)
            if indent is None:
                body = part.stop
            reduced.add(text[part.start : body])
            if indent is not None:
                reduced.leave_out(text[body : indent.start()])
                first = line + text.count("\n", part.start, indent.start())
                reduced.leave_body(text[indent.start() : part.stop], indent[1], first)
        else:
            bodiless = at - 1 in kept and _bodiless(parts, at - 1, kept)
            indent = INDENT.match(text, part.start) if bodiless else None
            reduced.leave_out(text[part.start : part.stop], f"{indent[0]}pass" if indent is not None else "")
        line += text.count("\n", part.start, part.stop)
    return reduced


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


def _bodiless(parts: Sequence[Part], at: int, kept: set[int]) -> bool:
    """Whether this is the head of a class of which nothing else is kept."""
    head = parts[at]
    if head.kind != "class" or (at and _same_class(parts[at - 1], head)):
        return False
    rest = list(takewhile(lambda n: _same_class(parts[n], head), range(at + 1, len(parts))))
    return bool(rest) and kept.isdisjoint(rest)


def _same_class(part: Part, head: Part) -> bool:
    return part.owner == head.name or (part.kind == "class" and part.name == head.name)
