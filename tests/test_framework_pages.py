"""docs/frameworks/*.md say what the data files and the rules say; their programs are run by test_captures.py."""

from __future__ import annotations

from framework_pages import PAGES, named, written

from precaudit import rulebook
from precaudit.model.frameworks import all_frameworks


def test_words_fixes_and_versions_are_those_of_the_data() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert written(text) == text, "run: python tests/framework_pages.py"


def test_every_framework_that_a_fix_or_a_data_file_is_of_has_its_page() -> None:
    fixes = {name for rule in rulebook.load().rules.values() for name in rule.fixes}
    files = {one.name for one in all_frameworks()}
    assert fixes | files - {"torchvision"} <= named()
    overview = (PAGES[0].parent.parent / "frameworks.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"(frameworks/{page.name})" not in overview] == []


def test_every_page_says_what_to_type_what_is_looked_at_and_what_is_not() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "precaudit trace" in text
        assert "**Looked at.**" in text
        assert "**Not looked at.**" in text
