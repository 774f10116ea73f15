"""What a preflight refuses, as docs/preflight.md lists it: tests hold the code to the page, row by row."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "preflight.md"


def rows() -> dict[str, str]:
    """What was asked for, in the page's words, -> the answer."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| Asked for | Answer |\n|---|---|\n")
    found = re.findall(r"^\| (.+?) \| `(.+)` \|$", table.partition("\n\n")[0], re.MULTILINE)
    return {asked.replace("`", ""): answer for asked, answer in found}


def answer(asked: str, **filled: str) -> str:
    """The row's answer as the program prints it; `filled` replaces what differs from machine to machine."""
    text = rows()[asked]
    for old, new in filled.items():
        assert f"<{old}>" in text, (asked, old)
        text = text.replace(f"<{old}>", new)
    return text
