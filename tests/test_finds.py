"""docs/finds.md: each public mistake has a program of ours, and what is said of it is what the program prints."""

from __future__ import annotations

import finds
import messages
import pytest
from finds import FINDS, Find

ALL = [find for group in FINDS.values() for find in group]


@pytest.mark.slow  # reads all fixtures
def test_every_mistake_is_in_the_page_with_its_threads_and_what_check_says() -> None:
    page = finds.PAGE.read_text(encoding="utf-8")
    assert page.count("\n- **") == len(ALL)
    for find in ALL:
        head = finds.head(find)
        assert head in page, "run: python tests/finds.py"
        own = page.partition(head)[2].partition("\n- **")[0] + "\n"
        assert own.count("    - *") == len(find.witnesses.split())
        if "check" in find.witnesses:
            assert messages.key(f"*check*: {finds.by_check(find)}\n") in messages.key(own), "run: python tests/finds.py"


@pytest.mark.slow
@pytest.mark.parametrize("find", [one for one in ALL if "trace" in one.witnesses], ids=lambda one: one.script)
def test_a_trace_says_of_our_program_what_the_page_has(find: Find) -> None:
    own = finds.PAGE.read_text(encoding="utf-8").partition(finds.head(find))[2].partition("\n- **")[0] + "\n"
    assert messages.key(f"*trace*: {finds.by_trace(find)}\n") in messages.key(own), "run: python tests/finds.py"
