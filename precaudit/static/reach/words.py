"""Finds the words in a file from which a finding can start; a file that has none is not worth parsing."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS: dict[str, tuple[str, ...]] = {
    "float16": ("float16",),
    r"half(?:(?<=\.half)\(|(?<=torch\.half)\b|(?<=[\"']half)[\"'])": (".half", '"half', "'half"),
    "float8_": ("float8_",),
    r"autocast(?<!\wautocast)\b": ("autocast",),
    "GradScaler": ("GradScaler",),
    "MixedPrecision": ("MixedPrecision",),
    "16-true": ("16-true",),
    "fp16_compress|bf16_compress": ("16_compress",),
    "master_weights_and_grads": ("_and_grads",),
    r"precision\s*=\s*[\"'](?:fp16|16-mixed)[\"']": ("fp16", "16-mixed"),
    r"mixed_precision\s*=\s*[\"']bf16[\"']": ("bf16",),
    r"amp_mode\s*=\s*[\"']amp[\"']|supervised_training_step_amp\b": ("amp_mode", "step_amp"),
    "load_in_[48]bit": ("load_in_",),
    "allow_fp16_": ("fp16",),
    r"fp16(?<!\wfp16)\s*=\s*(?:True|dict\()": ("fp16",),
    r"bf16(?<!\wbf16)\s*=\s*(?:True|dict\()": ("bf16",),
    r"fp16(?<=[\"']fp16)[\"'](?:\s*:|\]\s*=)": ("fp16",),
    r"bf16(?<=[\"']bf16)[\"'](?:\s*:|\]\s*=)": ("bf16",),
}
"""Every finding needs a low-precision dtype, an autocast region or a loss scaler in its file.

The pattern of each word, which begins with letters so that a search skips quickly to where one may stand, and what
its text contains one of: substrings are found much faster than patterns. A new word is a row here and nothing else.
"""
TRIGGERS = re.compile("|".join(WORDS))
SUBSTRINGS = sorted({literal for literals in WORDS.values() for literal in literals})
COMMON = ("16", "half", "")
"""Parts that several substrings share: a file without the part has none of them. Each counts for the first it has."""
IN_BYTES = [
    (part.encode(), [word.encode() for word in SUBSTRINGS if next(each for each in COMMON if each in word) == part])
    for part in COMMON
]
OPTIMIZERS = (b"ptimizer", b"optim.", b"optim=", b"optim import", b"import optim")
"""How code speaks of optimizers, and not of what is optimized or optimal."""
IGNORES = re.compile(rb"^[^#\n]*#.*(?:\bprecaudit\s*:|noqa: *PA)", re.MULTILINE)
"""An ignore comment is to be reported when it silences nothing."""
PROSE = re.compile(
    r"(\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|#[^\n]*)",
    re.DOTALL,
)
"""Comments and strings. One that is not closed is taken as well, or each quote in it would be tried again."""
CLOSING = "\n\"\"\"\n'''"
"""Ends whichever documentation string a text was cut in."""
COMPARED = re.compile(
    r"(?:[=!]=|\bis|\bis[ \t]+not)[ \t]*(?:torch\.)?b?$"
    r"|(?:\bnot[ \t]+|[\w\])][ \t]+)in[ \t]*[(\[{][^()\[\]{}]*$"
)
"""What stands before a dtype that something is only compared with: that makes nothing low."""

LONGEST_COMPARISON = 400
"""Characters before a word that are searched for one."""


def may_hold_a_finding(raw: bytes) -> bool:
    """Whether a source file is worth parsing."""
    if not has_literals(raw):
        return False
    text = raw.decode("latin-1")
    lines = _lines_to_search(text)
    found = _triggers_in(lines, text)
    return bool(found) and bool(_triggers_in(lines, code_of(text[: _end_of_line(text, found[-1])] + CLOSING)))


def has_literals(raw: bytes) -> bool:
    """Whether bytes have, code or not, what every trigger contains one of."""
    return any(part in raw and any(literal in raw for literal in literals) for part, literals in IN_BYTES)


def has_ignores(raw: bytes) -> bool:
    """Whether a source file may have comments that silence findings."""
    return (b"precaudit" in raw or b"noqa" in raw) and IGNORES.search(raw) is not None


def trains(raw: bytes) -> bool:
    """Whether a source file may train anything."""
    if b".backward(" in raw or b".step(" in raw or b"Trainer(" in raw:
        return True
    return b"ptim" in raw and any(word in raw for word in OPTIMIZERS)


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
    return _triggers_in(_lines_to_search(code), code)


def _triggers_in(lines: Iterable[tuple[int, int]], code: str) -> list[int]:
    return [
        match.start()
        for start, stop in lines
        for match in TRIGGERS.finditer(code, start, stop)
        if not _compared(code, match.start())
    ]


def _lines_to_search(code: str) -> list[tuple[int, int]]:
    """Where the lines begin and end in which a trigger may stand, in order."""
    found = set()
    for literal in SUBSTRINGS:
        at = code.find(literal)
        while at >= 0:
            stop = _end_of_line(code, at)
            found.add((code.rfind("\n", 0, at) + 1, stop))
            at = code.find(literal, stop)
    return sorted(found)


def _end_of_line(text: str, at: int) -> int:
    stop = text.find("\n", at)
    return stop if stop >= 0 else len(text)


def _compared(code: str, at: int) -> bool:
    line = code[max(code.rfind("\n", 0, at) + 1, at - LONGEST_COMPARISON) : at]
    found = COMPARED.search(line.rstrip("\"'"))
    return found is not None and not re.search(r"\bfor\b", line[: found.start() + 2])
