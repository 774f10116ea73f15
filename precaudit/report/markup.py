"""Text from outside, made harmless in Markdown."""

from __future__ import annotations

import re

from precaudit.report.words import visible

SPECIAL = re.compile(r"([\\`*_\[\]#|~<>&$@])")
LEADING = re.compile(r"^(\s*)([-+]|\d+(?=[.)]))")


def inline(outside: str) -> str:
    """Words that Markdown and HTML leave alone: no emphasis, link, tag, mention or table cell of their own."""
    escaped = SPECIAL.sub(r"\\\1", visible(outside))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def text(outside: str) -> str:
    """`inline` where a line begins: nor do the words start a list."""
    return LEADING.sub(r"\1&#8203;\2", inline(outside))


def code(outside: str) -> str:
    """A code span whose fence is longer than any run of backticks inside."""
    shown = visible(outside)
    if not shown.strip():
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def cell(outside: str) -> str:
    """A code span inside a table, where a bar would end the cell."""
    return code(outside).replace("|", "\\|")


def block(outside: str, language: str = "") -> str:
    """A fenced code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", outside)), default=0) + 1)
    return f"{fence}{language}\n{outside.strip(chr(10))}\n{fence}"
