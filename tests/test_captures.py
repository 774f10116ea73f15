"""Every output in the documentation is what the program prints; `python tests/captures.py` writes them anew."""

from __future__ import annotations

import re

import pytest
from captures import PAGES, Capture, captures, scrubbed

ALL = [capture for page in PAGES for _, capture in captures(page)]


@pytest.mark.parametrize(
    "capture",
    [
        pytest.param(one, id=f"{one.page.stem}-{at}", marks=[pytest.mark.slow] if one.slow else [])
        for at, one in enumerate(ALL)
    ],
)
def test_an_output_is_what_the_program_prints(capture: Capture) -> None:
    told = capture.printed()
    assert scrubbed(capture.shown) == scrubbed(told), f"run: python tests/captures.py {capture.page.name}\n{told}"


def test_no_output_stands_beside_them() -> None:
    """A command with its output has to be a capture, but for the one that needs two versions of a package."""
    loose = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inside = {match.start("words") for match, _ in captures(page)}
        for match in re.finditer(r"^ *\$ precaudit ([^\n]*)\n(?! *```)", text, re.MULTILINE):
            if match.start(1) not in inside:
                loose.append((page.name, match[1]))
    assert loose == [("contracts.md", "preflight --locked torchrun --nproc-per-node 2 train.py")]
    assert len(ALL) > 4
