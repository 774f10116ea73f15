"""Leaves out the top-level functions and classes of a long file that no finding can depend on, before it is parsed."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

from precaudit.static.relevance import LONG, relevant_names, used_names

HEAD = re.compile(r"^(?:@|(?:async[ \t]+)?def[ \t]+(\w+)|class[ \t]+(\w+))", re.MULTILINE)
INSIDE = re.compile(r"^(?:[ \t]|\s*$|[)\]}#])")
"""A line that cannot begin a new top-level statement."""


class Reduced(NamedTuple):
    """The text that is left, and for each of its stretches: first line there, first line in the file."""

    text: str
    starts: list[int]
    originals: list[int]

    def original(self, line: int) -> int:
        """The line of the whole file that a line of the reduced text is."""
        at = bisect_right(self.starts, line) - 1
        return self.originals[at] + line - self.starts[at]


def reduce(text: str) -> Reduced | None:
    """The text without irrelevant definitions; None where it is short or everything is needed."""
    lines = text.splitlines(True)
    if len(lines) < LONG or "\f" in text or "\r" in text.replace("\r\n", ""):
        return None
    blocks = _blocks(lines)
    named = [(name, used_names("".join(lines[a:b]))) for name, a, b in blocks]
    wanted = set(relevant_names(text))
    for name, words in named:
        if not name:
            wanted |= words
    needed: set[str] = set()
    grown = True
    while grown:
        grown = False
        for name, words in named:
            if name and name in wanted and name not in needed:
                needed.add(name)
                wanted |= words
                grown = True
    kept = [(a, b) for name, a, b in blocks if not name or name in needed]
    if sum(b - a for a, b in kept) > 0.8 * len(lines):
        return None
    pieces, starts, originals, at = [], [], [], 1
    for a, b in kept:
        pieces.extend(lines[a:b])
        starts.append(at)
        originals.append(a + 1)
        at += b - a
    return Reduced("".join(pieces), starts, originals)


def _blocks(lines: list[str]) -> list[tuple[str, int, int]]:
    """(name, first, end) of the top-level blocks, a run of other statements having no name."""
    blocks: list[tuple[str, int, int]] = []
    first, name, decorated = 0, "", False
    for number, line in enumerate(lines):
        if INSIDE.match(line):
            continue
        head = HEAD.match(line)
        found = (head[1] or head[2] or "") if head else ""
        if decorated:
            name, decorated = found or name, not found
            continue
        if head or name:
            if number > first:
                blocks.append((name, first, number))
            first, name = number, found
            decorated = line.startswith("@")
    blocks.append((name, first, len(lines)))
    return blocks
