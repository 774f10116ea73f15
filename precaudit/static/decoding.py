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
MAX_DOTS, MAX_OPERATORS = 400, 2500
"""Chains on which LibCST's parser takes quadratic time."""
DOTTED = re.compile(rf"(?:\.[A-Za-z_]\w*(?:\(\))?){{{MAX_DOTS}}}")
OPERATORS = re.compile(rf"(?:\s*[\w.]+\s*[-+*|&]){{{MAX_OPERATORS}}}")
NO_BRACKETS = bytes(set(range(256)) - set(b"()[]{}"))


def nested_too_deeply(code: str) -> bool:
    """Whether brackets or chains go deeper than any parser should be asked to follow; comments must be blanked."""
    if len(code) <= MAX_BRACKETS:
        return False
    left = code.encode("ascii", "replace").translate(None, NO_BRACKETS)
    for _ in range(MAX_BRACKETS):
        inner = left.replace(b"()", b"").replace(b"[]", b"").replace(b"{}", b"")
        if len(inner) == len(left):
            break
        left = inner
    if sum(left.count(bracket) for bracket in b"([{") > MAX_BRACKETS:
        return True
    if any(DOTTED.search(line) for line in code.split("\n") if len(line) >= 2 * MAX_DOTS):
        return True
    return sum(code.count(sign) for sign in "-+*|&") >= MAX_OPERATORS and OPERATORS.search(code) is not None
