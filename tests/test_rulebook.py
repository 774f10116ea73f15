"""The rule table is complete, consistent, and refuses a wrong rule file in one clear line."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

import precaudit
from precaudit import rulebook
from precaudit.errors import RuleError
from precaudit.foreign import parse_toml
from precaudit.model.evidence import EVIDENCE
from precaudit.model.vocabulary import FLOATING, Kind, Role
from precaudit.model.wire import Rule
from precaudit.report.words import opening_sentences
from precaudit.rulebook import GROUPS
from precaudit.shipped import rules_folder

BOOK = rulebook.load()
RULES = list(BOOK.rules.values())
IDS = [rule.id for rule in RULES]

ADAPTERS = Path(precaudit.__file__).parent / "runtime" / "frameworks"
FRAMEWORKS = {
    title.lower()
    for path in ADAPTERS.glob("*.py")
    for title in re.findall(r'^    title = "(\w+)"', path.read_text(), re.M)
}
"""What adapters call themselves, read without torch."""
LAST_OF_FAMILY = {0: 2, 1: 5, 2: 12, 3: 5, 4: 12, 5: 5, 6: 3, 7: 11, 8: 12}
PUBLISHED = {f"PA{family}{n:02}" for family, last in LAST_OF_FAMILY.items() for n in range(1, last + 1)}
"""Ids that suppressions and users rely on; more rules may follow."""


def test_every_published_id_has_a_rule() -> None:
    assert set(IDS) >= PUBLISHED


def test_ids_and_names_are_unique() -> None:
    assert len(set(IDS)) == len({rule.name for rule in RULES}) == len(list(rules_folder().glob("PA*.toml")))


@pytest.mark.parametrize("rule", RULES, ids=IDS)
class TestEveryRule:
    def test_says_why_with_a_number(self, rule: Rule) -> None:
        assert re.search(r"\d", rule.why)

    def test_shows_wrong_and_right_code_that_parses(self, rule: Rule) -> None:
        for example in (rule.wrong, rule.right):
            settings = example.lstrip().startswith("[[tool.precaudit.")
            parse_toml(example) if settings else ast.parse(textwrap.dedent(example))
        assert rule.wrong != rule.right

    def test_gives_a_fix_in_one_line(self, rule: Rule) -> None:
        for fix in (rule.fix, *rule.fixes.values()):
            assert fix.strip() == fix != ""
            assert "\n" not in fix

    def test_speaks_only_of_frameworks_that_adapters_name(self, rule: Rule) -> None:
        assert set(rule.fixes) <= FRAMEWORKS

    def test_says_why_in_one_short_line_too(self, rule: Rule) -> None:
        assert len(opening_sentences(rule.why)) <= 320

    def test_has_a_message_of_one_clause(self, rule: Rule) -> None:
        for message in (rule.message, *(grade.message for grade in rule.grades if grade.message)):
            assert "\n" not in message
            assert not message.endswith(".")
            assert len(message) <= 100

    def test_has_a_public_reference(self, rule: Rule) -> None:
        assert rule.references
        assert all(reference.startswith("https://") for reference in rule.references)

    def test_is_seen_by_somebody(self, rule: Rule) -> None:
        assert rule.seen_by

    def test_names_only_dtypes_that_exist(self, rule: Rule) -> None:
        named = {*(rule.allow or []), *(rule.forbid or []), *(d for grade in rule.grades for d in grade.dtype)}
        assert named <= {*FLOATING, *GROUPS}

    def test_names_only_evidence_that_reports_can_put_in_words(self, rule: Rule) -> None:
        named = {name for grade in rule.grades for name in (*grade.evidence, *grade.measured, *grade.below)}
        assert named <= set(EVIDENCE)

    def test_says_how_to_silence_it_by_reading_after_the_word_ignore(self, rule: Rule) -> None:
        assert rule.ignore_when


def test_a_role_table_row_is_a_role_and_appears_once() -> None:
    assert len(BOOK.roles) == 17
    assert Role.OPTIMIZER_STATE in BOOK.roles


def test_every_kind_of_fact_is_used_by_a_rule() -> None:
    assert {rule.fact for rule in RULES} == set(Kind)


def test_rules_are_found_by_id_and_by_name() -> None:
    assert BOOK.find("PA301") is BOOK.find("low-precision-optimizer-state")


def test_a_prefix_selects_its_family_and_all_selects_everything() -> None:
    assert BOOK.select(["PA3"]) == {"PA301", "PA302", "PA303", "PA304", "PA305"}
    assert BOOK.select(["ALL"]) == set(IDS)


@pytest.mark.parametrize("name", ["ZZ9", "PA999", ""])
def test_an_unknown_rule_is_one_line_with_the_way_out(name: str) -> None:
    with pytest.raises(RuleError) as caught:
        BOOK.find(name)
    assert str(caught.value) == f"no rule matches '{name}'; run \"precaudit rules\" for the list"


def test_a_nearly_right_name_is_suggested() -> None:
    with pytest.raises(RuleError) as caught:
        BOOK.find("low-precision-optimiser-state")
    assert str(caught.value) == (
        "no rule matches 'low-precision-optimiser-state'; did you mean 'low-precision-optimizer-state'? "
        'run "precaudit rules" for the list'
    )


GOOD = (rules_folder() / "PA301-low-precision-optimizer-state.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('role = "optimizer_state"', 'role = "optimiser_state"'),
         "role: 'optimiser_state' is not a role; did you mean 'optimizer_state'?"),
        (("forbid =", "forbidd ="), "key: 'forbidd' is not a key of a rule; did you mean 'forbid'?"),
        (('severity = "error"', 'severity = "fatal"'), "severity: input should be 'error', 'warning' or 'note'"),
        (('id = "PA301"', 'id = "PA302"'),
         "id and name say 'PA302-low-precision-optimizer-state'; rename the file to that, or mend them"),
        (('id = "PA301"', 'id = PA301'), "not valid TOML: Invalid value (at line 1, column 6)"),
    ],
    ids=["misspelt role", "misspelt key", "unknown severity", "file name differs", "not TOML"],
)  # fmt: skip
def test_a_bad_rule_file_is_named_with_what_is_wrong(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    path = folder / "PA301-low-precision-optimizer-state.toml"
    path.write_text(GOOD.replace(*change, 1), encoding="utf-8")
    with pytest.raises(RuleError) as caught:
        rulebook.load_rule(path)
    assert str(caught.value) == f"rules/{path.name}: {complaint}"
