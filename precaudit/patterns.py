"""Which paths .gitignore patterns name, as git reads them; no pattern takes longer than its length times the path's.

Source: https://git-scm.com/docs/gitignore, and git's own dir.c and wildmatch.c. Compared with `git check-ignore`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

SPECIAL = re.compile(r"[*?\[\\]")
CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": r" \t", "cntrl": r"\x00-\x1f\x7f", "digit": "0-9",
    "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r" \t-\r", "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}  # fmt: skip
"""`[[:alpha:]]` and its like, of the C locale."""
LONGEST = 10_000
"""Characters of a line that is still read; no path is as long."""
Matches = Callable[[str], bool]


class Pattern(NamedTuple):
    """One line of a .gitignore."""

    matches: Matches
    """Of a path from the folder of the file, or of its last name alone."""
    by_name: bool
    """It holds no slash, so it is asked about the last name of a path in any folder."""
    folders: bool
    """It ends in a slash: only folders match."""
    negated: bool
    """It begins with `!`: what matches is not ignored after all."""


class Patterns:
    """The lines of one .gitignore, or of a setting that is written like one; those that match nothing are left out."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns = [made for line in lines if (made := _pattern(line)) is not None][::-1]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """Whether a path, `a/b.py` from the file's folder, is ignored; None where no line says anything of it."""
        path = os.fsencode(path).decode("latin-1")  # git compares bytes
        name = path.rpartition("/")[2]
        for matches, by_name, folders, negated in self._patterns:
            if (is_folder or not folders) and matches(name if by_name else path):
                return not negated
        return None

    def cover(self, path: str) -> bool:
        """Whether a file or one of the folders that it stands in is ignored."""
        parts = path.strip("/").split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return any(self.verdict(folder, True) for folder in above) or bool(self.verdict("/".join(parts), False))


def _pattern(line: str) -> Pattern | None:
    """A line as git parses it; None for a comment and for what can match nothing."""
    text = os.fsencode(_without_trailing_spaces(line.removesuffix("\r"))).decode("latin-1")
    if not text or text.startswith("#") or len(text) > LONGEST:
        return None
    negated, text = text.startswith("!"), text.removeprefix("!")
    folders, text = text.endswith("/"), text.removesuffix("/")
    if not text:
        return None
    by_name = "/" not in text
    matches = _matcher(text.removeprefix("/"), not by_name)
    return Pattern(matches, by_name, folders, negated) if matches is not None else None


def _without_trailing_spaces(line: str) -> str:
    kept = len(line.rstrip(" "))
    slashes = kept - len(line[:kept].rstrip("\\"))
    return line[: kept + 1] if slashes % 2 and kept < len(line) else line[:kept]


def _matcher(text: str, is_path: bool) -> Matches | None:
    """What tells whether a name or path matches; None where none can."""
    special = SPECIAL.search(text)
    if special is None:
        return text.__eq__
    if not is_path and text[0] == "*" and not SPECIAL.search(text, 1):
        return lambda name, end=text[1:]: name.endswith(end)  # type: ignore[misc]
    start = special.start()
    pieces = _pieces(text[start:], is_path)
    if pieces is None:
        return None
    pieces = [*map(re.escape, text[:start]), *pieces]
    if sum(piece in STARS and piece != PERHAPS for piece in pieces) > 1:
        return Automaton(pieces).matches
    expression = re.compile("".join(STARS.get(piece, piece) for piece in pieces), re.DOTALL)
    return lambda path: expression.fullmatch(path) is not None


STAR, STARS_ALONE, PERHAPS, STARS_SLASH = "*", "**", "perhaps", "**/"
STARS = {STAR: "[^/]*", STARS_ALONE: ".*", PERHAPS: "", STARS_SLASH: "(?:.*/)?"}
"""What stands for any number of characters; every other piece is a regular expression of one character.

`**/` is two pieces: the first lets the second be left out.
"""


def _pieces(text: str, is_path: bool) -> list[str] | None:
    """A pattern taken apart, one piece for each character or run of stars; None where it can match nothing."""
    pieces = []
    at = 0
    while at < len(text):
        sign = text[at]
        if sign == "*":
            end = len(text) - len(text[at:].lstrip("*"))
            follows = text[end : end + 2]
            alone = (at == 0 or text[at - 1] == "/") and (not follows or follows[0] == "/" or follows == "\\/")
            if not is_path or end - at == 1 or not alone:
                pieces.append(STAR)
            elif follows[:1] == "/":
                pieces += [PERHAPS, STARS_SLASH] if pieces[-1:] != [STARS_SLASH] else []
                end += 1
            else:
                pieces.append(STARS_ALONE)
            at = end
        elif sign == "[":
            found = _class(text, at)
            if found is None:
                return None
            piece, at = found
            pieces.append(piece)
        elif sign == "\\":
            if at + 1 == len(text):
                return None
            pieces.append(re.escape(text[at + 1]))
            at += 2
        else:
            pieces.append("[^/]" if sign == "?" else re.escape(sign))
            at += 1
    return pieces


def _class(text: str, at: int) -> tuple[str, int] | None:
    """`[a-z]` as a regular expression, and where it ends; None where it is not closed or is none."""
    at += 1
    negated = text[at : at + 1] in ("!", "^") and at < len(text)
    at += negated
    parts: list[str] = []
    last: str | None = None
    first = True
    while first or text[at] != "]":
        first = False
        sign = text[at : at + 1]
        if sign == "\\":
            at += 1
            sign = text[at : at + 1]
        elif sign == "[" and text[at + 1 : at + 2] == ":":
            end = text.find("]", at + 2)
            name = text[at + 2 : end - 1]
            if end < 0:
                return None
            if text[end - 1] == ":" and end - 1 >= at + 2:
                if name not in CLASSES:
                    return None
                parts.append(CLASSES[name])
                last, at = None, end + 1
                if at >= len(text):
                    return None
                continue
        elif sign == "-" and last is not None and at + 1 < len(text) and text[at + 1] != "]":
            at += 1
            if text[at] == "\\":
                at += 1
            high = text[at : at + 1]
            if not high:
                return None
            if last <= high:
                parts.append(f"{re.escape(last)}-{re.escape(high)}")
            last, at = None, at + 1
            if at >= len(text):
                return None
            continue
        if not sign:
            return None
        parts.append(re.escape(sign))
        last, at = sign, at + 1
        if at >= len(text):
            return None
    inside = "".join(parts)
    return (rf"(?!/)[^{inside}]" if negated else rf"(?!/)[{inside}]"), at + 1


class Automaton:
    """A pattern of several stars, walked along a path with all its places at once: it never goes back.

    A place is a bit: bit n is set where the first n pieces match what was read.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self._end = 1 << len(pieces)
        self._empty = _bits(pieces, lambda piece: piece in (STAR, STARS_ALONE, PERHAPS))
        """Places whose piece may match nothing."""
        self._both = _bits(pieces, lambda piece: piece == PERHAPS)
        """Places whose piece may be left out with the one that follows."""
        self._steps: dict[str, tuple[int, int]] = {}

    def matches(self, path: str) -> bool:
        """Whether the whole path matches."""
        places = self._closed(1)
        for sign in path:
            stays, goes = self._steps.get(sign) or self._step(sign)
            places = self._closed((places & stays) | (places & goes) << 1)
            if not places:
                return False
        return bool(places & self._end)

    def _step(self, sign: str) -> tuple[int, int]:
        """The places that a character leaves where they are, and those that it leads to the next one."""
        stays = _bits(self._pieces, lambda p: p in (STARS_ALONE, STARS_SLASH) or (p == STAR and sign != "/"))
        goes = _bits(
            self._pieces, lambda p: sign == "/" if p == STARS_SLASH else p not in STARS and bool(re.fullmatch(p, sign))
        )
        self._steps[sign] = (stays, goes)
        return stays, goes

    def _closed(self, places: int) -> int:
        """With the places that are reached by reading nothing; a few rounds, for no more stars stand side by side."""
        while (more := places | (places & self._empty) << 1 | (places & self._both) << 2) != places:
            places = more
        return places


def _bits(pieces: Sequence[str], chosen: Callable[[str], bool]) -> int:
    """The places of the pieces that are chosen."""
    return sum(1 << number for number, piece in enumerate(pieces) if chosen(piece))
