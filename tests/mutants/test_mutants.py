"""The mutation engine: its programs are clean and train, its operators apply, a fixed sample is found as recorded."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from mutants import engine, matrix, operators
from mutants.patterns import Matcher, Shape, code, parsed, places

from precaudit import rulebook

PROGRAMS = engine.programs()
OPERATORS = operators.load()
HARMLESS = operators.load("mutants.harmless")
RUNNABLE = [name for name, program in PROGRAMS.items() if program.runnable]
SAMPLE = Path(__file__).with_name("sample.txt")
"""`program operator place: check=located trace=missed`, one mutant each: what each witness must do at least."""
RANK = {word: rank for rank, word in enumerate(("failed", "missed", "noted", "found", "located"))}
SHARDS = 10


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    engine.warm()


def written(find: str, put: str, text: str) -> list[str]:
    """The text after each place that fits was written anew."""
    module = parsed(text)
    matcher = Matcher({"MODEL": frozenset({"net"})}, {})
    return [p.rewritten(module, Shape(put)).code for p in places(module, Shape(find), Shape(put), matcher, {})]


def test_an_expression_is_rewritten_at_each_place_alone() -> None:
    assert written("X_.float()", "X_", "a = b.float() + (c + d).float()\n") == [
        "a = b + (c + d).float()\n",
        "a = b.float() + (c + d)\n",
    ]


def test_a_hole_with_a_role_stands_only_for_what_plays_it() -> None:
    assert written("MODEL_(X_)", "MODEL_(X_.half())", "a = net(x)\nb = other(x)\n") == [
        "a = net(x.half())\nb = other(x)\n"
    ]


def test_statements_with_a_gap_are_moved_into_a_block() -> None:
    text = "with amp():\n    a()\nb()\nc()\n"
    find, put = "with amp():\n    BODY_\nGAP_\nc()", "with amp():\n    BODY_\n    GAP_\n    c()"
    assert written(find, put, text) == ["with amp():\n    a()\n    b()\n    c()\n"]


def test_the_same_hole_twice_stands_for_the_same_code() -> None:
    assert written("X_ + X_", "X_", "y = a + b\nz = c.d + c.d\n") == ["y = a + b\nz = c.d\n"]


def test_arguments_that_are_not_named_are_kept() -> None:
    assert written("f(A_, k=B_, *REST_)", "f(A_, k=0, *REST_)", "f(1, 2, j=3, k=4)\n") == ["f(1, 2, k=0, j=3)\n"]
    assert code(parsed("(a)\n").body[0].body[0].value) == "a"  # type: ignore[union-attr]


def test_every_operator_names_rules_that_exist_and_applies_somewhere() -> None:
    known = set(rulebook.load().rules)
    for operator in OPERATORS.values():
        assert operator.breaks, f"{operator.name} breaks no rule"
        assert known >= {*operator.breaks, *operator.beside}, operator.name
        assert operator.edits or operator.transform, operator.name


@pytest.mark.parametrize("name", PROGRAMS)
def test_source_of_a_clean_program_is_not_reported(name: str) -> None:
    said = engine.checked(PROGRAMS[name])
    assert not isinstance(said, str), said
    assert not [s for s in said if s.severity in engine.LOUD]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_clean_program_trains_and_its_trace_reports_nothing(name: str) -> None:
    ran = engine.measured(PROGRAMS[name])
    assert not ran.get("crash"), ran
    assert not ran["error"], ran
    losses = [float(x) for x in re.findall(r"loss (-?[\d.]+|nan)", ran["output"])]
    assert len(losses) >= 4, ran["output"]
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    said = engine.traced(PROGRAMS[name])
    assert not isinstance(said, str), said
    assert not [s for s in said if s.severity in engine.LOUD]


def sample() -> list[tuple[str, str, int, dict[str, str]]]:
    found = []
    for line in SAMPLE.read_text().splitlines():
        head, _, tail = line.partition(": ")
        program, operator, place = head.split()
        found.append((program, operator, int(place), dict(word.split("=") for word in tail.split())))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_fixed_sample_of_mutants_is_found_as_recorded(shard: int, tmp_path: Path) -> None:
    store = matrix.Store(tmp_path / "store.jsonl")
    for program, operator, place, wanted in sample()[shard::SHARDS]:
        way = OPERATORS[operator]
        mutant = engine.mutants(PROGRAMS[program], way)[place]
        row = matrix.examine(mutant, way, store)
        assert row.counted, f"{row.name} is {row.damage}"
        for witness, outcome in wanted.items():
            verdict = row.verdicts[witness]
            assert RANK[verdict["outcome"]] >= RANK[outcome], f"{witness} {row.name}: {verdict}"
            assert not verdict["false"], f"{witness} {row.name}: {verdict}"


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_harmless_operators_change_no_verdict(shard: int, tmp_path: Path) -> None:
    work = matrix.chosen_mutants(
        [PROGRAMS[name] for name in RUNNABLE if not PROGRAMS[name].needs], HARMLESS.values(), 40, seed=1
    )
    random.Random(0).shuffle(work)
    store = matrix.Store(tmp_path / "store.jsonl")
    told = [line for line in matrix.alarms(work[shard::SHARDS], store) if line.startswith("alarm")]
    assert not told
