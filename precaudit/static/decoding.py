"""The text of a source file, decoded as Python would, and whether a parser should be asked to follow it."""

from __future__ import annotations

import io
import re
import tokenize


class SourceError(Exception):
    """A file that is not Python source as this parser knows it; `str()` is "line:column: reason" or a reason."""


def decode(raw: bytes) -> str:
    """The text of a source file by its PEP 263 encoding and byte order mark. Raises SourceError."""
    if b"\0" in raw:
        raise SourceError("source code cannot contain null bytes")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return io.TextIOWrapper(io.BytesIO(raw), encoding, newline="").read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else f"not {getattr(error, 'encoding', 'decodable')} text"
        raise SourceError(str(reason)) from None


MAX_BRACKETS = 200
"""CPython refuses deeper nesting too; LibCST's parser overflows the stack somewhere beyond."""
MAX_TRAILERS, MAX_LINKS, MAX_ELIFS = 400, 2500, 2500
"""Chains (`x.a[0].b()`, `x + x + x`, `elif`) that go further take LibCST's parser minutes, or overflow its stack."""
SIGNS = {"([{": "(", ")]}": ")", ",;=:": ",", "\n": "\n", ".": ".", "+-*/%@&|^<>~": "+"}
"""What is left of code to be asked how deep it goes: one sign for each kind, and for operators written as words."""
KIND = {ord(sign): kind for signs, kind in SIGNS.items() for sign in signs}
OF_KIND = bytes(ord(KIND.get(code, " ")) for code in range(256))
NO_SIGNS = bytes(code for code in range(256) if code not in KIND)
OPERATOR_WORDS = re.compile(r"\b(?:(?:or|and|not|if|else)\b|lambda\b(?:(?!lambda\b)[^:\n]){0,80}:?)")
SHORT_STRINGS = re.compile(r"\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?")
RUNS = re.compile(rb"\.+|\++|\(|\)|,[,\n]*|\n[,\n]*")
BRANCHES = re.compile(r"^([ \t]*)(el)?if\b", re.MULTILINE)


def nested_too_deeply(code: str) -> bool:
    """Whether brackets or chains go deeper than any parser should be asked to follow; comments must be blanked."""
    if code.count("elif") > MAX_ELIFS and _too_many_elifs(code):
        return True
    return any(_long(piece) and _chained(piece) for piece in code.replace(" def ", "\ndef ").split("\ndef "))


def _long(piece: str) -> bool:
    """Whether a function has as many signs that it might be too deep; most have fewer, and counting them is fast."""
    if len(piece) > 2 * MAX_LINKS:
        return True
    signs = _signs(piece) if len(piece) > MAX_BRACKETS else b""
    return len(signs) - signs.count(b",") - signs.count(b"\n") > MAX_BRACKETS


def _signs(code: str) -> bytes:
    return code.encode("ascii", "replace").translate(OF_KIND, NO_SIGNS)


def _chained(code: str) -> bool:
    """Whether code nests brackets or chains trailers and operators further than is allowed."""
    code = SHORT_STRINGS.sub("", code)
    if sum(map(code.count, ("or", "and", "not", "if", "lambda"))) >= MAX_LINKS // 2:
        code = OPERATOR_WORDS.sub("+", code)
    outer: list[tuple[int, int]] = []
    links = trailers = 0
    for match in RUNS.finditer(_signs(code)):
        run = match[0]
        if run[0] == 0x28:  # (
            outer.append((links + 1, trailers + 1))
            links = trailers = 0
            if len(outer) > MAX_BRACKETS:
                return True
        elif run[0] == 0x29:  # )
            links, trailers = outer.pop() if outer else (0, 0)
        elif run[0] in b".+":
            links += len(run)
            trailers = trailers + len(run) if run[0] == 0x2E else 0
        elif b"," in run or not outer:  # what follows a new line in brackets goes on with the same expression
            links = trailers = 0
        if trailers > MAX_TRAILERS or links > MAX_LINKS:
            return True
    return False


def _too_many_elifs(code: str) -> bool:
    following: dict[str, int] = {}
    for match in BRANCHES.finditer(code):
        following[match[1]] = following.get(match[1], 0) + 1 if match[2] else 0
    return max(following.values(), default=0) > MAX_ELIFS
