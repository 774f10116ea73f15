"""`precaudit rules`, and the page of rules that the docs show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from precaudit import rulebook
from precaudit.commands.rules import rules, show
from precaudit.errors import RuleError
from precaudit.report.rulepage import docs_page

DOCS = Path(__file__).parents[2] / "docs"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(rules, list(arguments), env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_table_lists_every_rule_in_order() -> None:
    assert re.findall(r"^(PA\d{3})", run(), re.MULTILINE) == list(rulebook.load().rules)


def test_one_page_says_why_with_the_numbers_wrong_right_and_when_to_ignore() -> None:
    page = run("PA301")
    for part in ("11-14 %", "wrong", "right", "fix", "ignore when", "https://arxiv.org/abs/1710.03740"):
        assert part in page


def test_a_rule_is_found_by_name_and_in_small_letters() -> None:
    assert run("low-precision-optimizer-state") == run("pa301") == run("PA301")


def test_several_rules_are_several_pages() -> None:
    assert re.findall(r"^(PA\d{3})", run("PA301", "PA101"), re.MULTILINE) == ["PA301", "PA101"]


def test_an_unknown_rule_is_a_rule_error() -> None:
    with pytest.raises(RuleError, match=r"^no rule matches 'ZZ9'; run \"precaudit rules\" for the list$"):
        CliRunner().invoke(rules, ["ZZ9"], catch_exceptions=False)


def test_json_gives_the_rules_as_they_are_written() -> None:
    listed = json.loads(run("--output-format", "json"))
    assert [rule["id"] for rule in listed] == list(rulebook.load().rules)
    assert listed[0]["fact"] == "suppression"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_page_fits_its_width(width: int) -> None:
    from precaudit.report.terminal import rule_page, rule_table

    book = rulebook.load()
    pages = [
        rule_table(book, color=False, width=width),
        *(rule_page(r, color=False, width=width) for r in book.rules.values()),
    ]
    assert max(len(line) for page in pages for line in page.splitlines()) <= width


def test_the_docs_page_is_what_the_program_writes() -> None:
    assert (DOCS / "rules.md").read_text(encoding="utf-8") == docs_page(rulebook.load()), (
        "docs/rules.md is not up to date: python -m precaudit rules --output-format md > docs/rules.md"
    )
    assert show(rulebook.load(), [], "md") == docs_page(rulebook.load())


def test_every_link_of_the_docs_table_has_its_section() -> None:
    page = docs_page(rulebook.load())
    sections = {
        re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) == sections
