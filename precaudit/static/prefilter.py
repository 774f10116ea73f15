"""Finds the words in a file from which a finding can start; a file that has none is not worth parsing."""

from __future__ import annotations

import re

TRIGGERS = re.compile(
    r"float16|half(?:(?<=\.half)\(|(?<=torch\.half)\b|(?<=[\"']half)[\"'])|float8_|autocast(?<!\wautocast)\b|GradScaler"
    r"|MixedPrecision|16-true|fp16_compress|bf16_compress|master_weights_and_grads"
    r"|precision\s*=\s*[\"'](?:fp16|16-mixed)[\"']"
    r"|load_in_4bit|load_in_8bit|allow_fp16_"
    r"|fp16(?<!\wfp16)\s*=\s*True|bf16(?<!\wbf16)\s*=\s*True|fp16(?<=[\"']fp16)[\"']\s*:|bf16(?<=[\"']bf16)[\"']\s*:"
)
"""Every finding needs a low-precision dtype, an autocast region or a loss scaler in its file.

Each alternative begins with letters, so that the search skips quickly to where one may stand.
"""
LITERALS = (
    b"float16",
    b".half",
    b'"half',
    b"'half",
    b"float8_",
    b"autocast",
    b"GradScaler",
    b"MixedPrecision",
    b"16-true",
    b"16-mixed",
    b"16_compress",
    b"_and_grads",
    b"fp16",
    b"bf16",
    b"load_in_",
)
"""What every trigger contains one of: plain substrings, which are found much faster than patterns."""
IGNORES = re.compile(rb"#[^\n]*(?:\bprecaudit\s*:|noqa: *PA)")
"""An ignore comment is to be reported when it silences nothing."""
PROSE = re.compile(
    r"(\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*)",
    re.DOTALL,
)
"""Comments and strings."""
COMPARED = re.compile(
    r"(?:[=!]=|\bis|\bis[ \t]+not)[ \t]*(?:torch\.)?b?$"
    r"|(?:\bnot[ \t]+|[\w\])][ \t]+)in[ \t]*[(\[{][^()\[\]{}]*$"
)
"""What stands before a dtype that something is only compared with: that makes nothing low."""


def may_hold_a_finding(raw: bytes) -> bool:
    """Whether a source file is worth parsing."""
    if not any(literal in raw for literal in LITERALS):
        return False
    text = raw.decode("latin-1")
    return TRIGGERS.search(text) is not None and bool(triggers(code_of(text)))


def has_ignores(raw: bytes) -> bool:
    """Whether a source file may have comments that silence findings."""
    return (b"precaudit" in raw or b"noqa" in raw) and IGNORES.search(raw) is not None


def code_of(text: str) -> str:
    """The text with its comments, and the strings that are documentation or messages, blanked at equal length."""
    pieces = PROSE.split(text)
    for at in range(1, len(pieces), 2):
        piece = pieces[at]
        if piece[0] == "#":
            pieces[at] = " " * len(piece)
        elif piece.startswith(('"""', "'''")):
            lines = piece.split("\n")
            pieces[at] = "\n".join([" " * len(line) for line in lines])
        elif " " in piece:
            pieces[at] = piece[0] + " " * (len(piece) - 2) + piece[0]
    return "".join(pieces)


def triggers(code: str) -> list[int]:
    """Where in the code of a file the words stand that a finding can start from."""
    return [match.start() for match in TRIGGERS.finditer(code) if not _compared(code, match.start())]


def _compared(code: str, at: int) -> bool:
    line = code[code.rfind("\n", 0, at) + 1 : at]
    found = COMPARED.search(line.rstrip("\"'"))
    return found is not None and not re.search(r"\bfor\b", line[: found.start() + 2])
