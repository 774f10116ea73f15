"""Rules and witnesses keep what they promise each other: what a rule reads is written, and what is written is read.

What witnesses write is read from their code (`witnesses.py`); what a Fact may say stands in `model/attributes.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import witnesses
from test_judge import SPOKEN
from witnesses import ANY, PACKAGE, Said

from precaudit import rulebook
from precaudit.model.attributes import ATTRIBUTES, Context
from precaudit.model.evidence import EVIDENCE
from precaudit.model.vocabulary import Fact, Kind
from precaudit.model.wire import Rule

RULES = list(rulebook.load().rules.values())
CODE = {name: witnesses.read(name) for name in witnesses.WITNESSES}
WORDS = frozenset({"dtype", "role", "count"})
"""What a message may name besides attributes."""


@cache
def allowed(kind: Kind) -> Mapping[str, frozenset[Any] | None]:
    """Key -> the values that a Fact of this kind may give it; None where they are not finite."""
    found: dict[str, frozenset[Any] | None] = dict.fromkeys(get_type_hints(Context))
    for key, hint in get_type_hints(ATTRIBUTES[kind]).items():
        found[key] = frozenset(get_args(hint)) if get_origin(hint) is Literal else None
        if hint is bool:
            found[key] = frozenset({True, False})
    return found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def roles(rule: Rule) -> list[Any]:
    return listed(rule.role) if rule.role is not None else []


def about(rule: Rule, said: Said) -> bool:
    """Whether this can be of a Fact that the rule looks at."""
    kind = said.kind in (rule.fact, ANY)
    return kind and (not roles(rule) or said.role is ANY or said.role in roles(rule))


def written(rule: Rule, seen_by: Iterable[str], key: str) -> set[Any]:
    """The values that these witnesses can give to an attribute of the Facts that the rule looks at."""
    return {s.value for w in seen_by for s in CODE[w].attributes if s.key == key and about(rule, s)}


def holes(text: str) -> list[str]:
    return [name for name in re.findall(r"{(\w+)}", text) if name not in WORDS]


def ids(rules: Iterable[Rule]) -> list[str]:
    return [rule.id for rule in rules]


def test_every_kind_has_one_class_of_attributes() -> None:
    assert set(ATTRIBUTES) == set(Kind)


# -- what a rule reads is written


@pytest.mark.parametrize("rule", RULES, ids=ids(RULES))
def test_each_witness_of_a_rule_makes_the_facts_it_looks_at(rule: Rule) -> None:
    for name in rule.seen_by:
        made = {m for m in CODE[name].made if m.kind is rule.fact}
        assert made, f"{name} makes no {rule.fact.value}"
        if roles(rule):
            assert any(m.role in roles(rule) for m in made) or _only_untold(made), f"{name} never sees this role"
        for key, value in rule.when.items():
            found = written(rule, [name], key)
            assert found & {ANY, *listed(value)}, f"{name} never says {key} = {value}"


def _only_untold(made: Iterable[Any]) -> bool:
    return all(m.role is ANY for m in made)


@pytest.mark.parametrize("rule", RULES, ids=ids(RULES))
def test_every_attribute_that_a_rule_reads_is_written(rule: Rule) -> None:
    special = [*rule.grades, *rule.cases]
    wanted = [*rule.when.items(), *rule.unless.items(), *(item for each in special for item in each.when.items())]
    for key, value in wanted:
        assert key in allowed(rule.fact), f"no {rule.fact.value} says {key}"
        found = written(rule, rule.seen_by, key)
        for each in listed(value):
            assert found & {ANY, each}, f"nobody writes {key} = {each}"
    for text in (rule.message, *(each.message for each in special)):
        for key in holes(text):
            assert key in allowed(rule.fact), f"no {rule.fact.value} says {key}"
            assert written(rule, rule.seen_by, key), f"nobody writes {key}"


@pytest.mark.parametrize("rule", RULES, ids=ids(RULES))
def test_every_number_that_a_grade_reads_is_measured(rule: Rule) -> None:
    measured = {s.key for w in rule.seen_by for s in CODE[w].evidence if about(rule, s)}
    for grade in rule.grades:
        wanted = {*grade.evidence, *grade.below, *grade.measured}
        assert wanted <= measured, f"nobody measures {', '.join(sorted(wanted - measured))} of what {rule.id} looks at"


# -- what is written is read


@pytest.mark.parametrize("witness", CODE)
def test_a_witness_writes_only_what_a_fact_of_that_kind_may_say(witness: str) -> None:
    places: dict[tuple[str, str], list[Said]] = {}
    for said in CODE[witness].attributes:
        places.setdefault((said.where, said.key), []).append(said)
    for (where, key), here in places.items():
        assert any(_fits(said) for said in here), f"{where} writes {key}, which {_kinds(here)} cannot say"
    assert CODE[witness].unread == [], "attributes that this test cannot read"


def _fits(said: Said) -> bool:
    for kind in Kind if said.kind is ANY else [said.kind]:
        values = allowed(kind).get(said.key, frozenset())
        if values is None or said.value in {ANY, *values}:
            return True
    return False


def _kinds(here: Iterable[Said]) -> str:
    return ", ".join(sorted({getattr(said.kind, "value", "a Fact") for said in here}))


def test_every_attribute_and_value_that_a_fact_may_say_is_written_by_a_witness() -> None:
    said = {s for code in CODE.values() for s in code.attributes}
    for kind in Kind:
        for key in get_type_hints(ATTRIBUTES[kind]):
            values = allowed(kind)[key]
            found = {s.value for s in said if s.key == key and s.kind in (kind, ANY)}
            assert found, f"nobody writes {key} of {kind.value}"
            if values and values != {True, False} and ANY not in found:
                assert values <= found, f"nobody writes {key} = {', '.join(map(str, values - found))} of {kind.value}"


def test_every_attribute_that_a_fact_may_say_is_read_by_a_rule_or_the_code() -> None:
    read = {(rule.fact, key) for rule in RULES for key in _read_by(rule)}
    elsewhere = set(_looked_up())
    own = {(kind, key) for kind in Kind for key in get_type_hints(ATTRIBUTES[kind])}
    assert {f"{kind.value}: {key}" for kind, key in own - read if key not in elsewhere} == set()


def _read_by(rule: Rule) -> Iterator[str]:
    yield from (*rule.when, *rule.unless, *holes(rule.message))
    for each in (*rule.grades, *rule.cases):
        yield from (*each.when, *holes(each.message))


def _looked_up() -> Iterator[str]:
    """The keys in `….attrs["key"]` and `….attrs.get("key")`, where they are read."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                holder, key = node.value, node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".attrs.get"):
                holder, key = node.func.value, node.args[0]
            else:
                continue
            if isinstance(holder, ast.Attribute) and holder.attr == "attrs" and isinstance(key, ast.Constant):
                yield str(key.value)


def test_the_evidence_that_witnesses_measure_is_the_registry() -> None:
    assert {said.key for code in CODE.values() for said in code.evidence} == set(EVIDENCE)


# -- the judge's own table


@pytest.mark.parametrize(("fact", "expected"), SPOKEN, ids=lambda row: getattr(row, "kind", Kind.HOLDS).value)
def test_a_row_of_the_judges_table_is_a_fact_that_a_witness_can_make(fact: Fact, expected: Mapping[str, str]) -> None:
    for rule in (rulebook.load().rules[name] for name in expected):
        for key, value in fact.attrs.items():
            assert written(rule, rule.seen_by, key) & {ANY, value}, f"nobody writes {key} = {value} for {rule.id}"
        measured = {s.key for w in rule.seen_by for s in CODE[w].evidence if about(rule, s)}
        assert set(fact.evidence) <= measured, f"nobody measures {', '.join(fact.evidence)} for {rule.id}"
