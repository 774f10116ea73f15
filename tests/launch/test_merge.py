"""What all ranks together saw: equal Facts once, one rank's figures, and ranks that disagree."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from precaudit.launch import roll
from precaudit.launch.collect import read_ranks
from precaudit.launch.merge import Merged
from precaudit.model.evidence import EVIDENCE
from precaudit.model.vocabulary import Fact, Kind, Role, Site
from precaudit.model.wire import Coverage, RankFile


def holds(role: Role, dtype: str, module: str = "", **more: object) -> Fact:
    return Fact(kind=Kind.HOLDS, dtype=dtype, role=role, module=module, **more)  # type: ignore[arg-type]


def rank_file(rank: int, *facts: Fact, world_size: int = 1, coverage: Coverage | None = None) -> RankFile:
    return RankFile(
        format=1,
        rank=rank,
        world_size=world_size,
        status="stopped",
        steps=3,
        coverage=coverage or Coverage(),
        facts=[fact.as_json() for fact in facts],
    )


def merged(*files: RankFile) -> Merged:
    out = Merged()
    for one in files:
        out.add(one)
    out.finish()
    return out


@pytest.mark.parametrize("name", EVIDENCE)
def test_of_every_number_the_worst_is_kept_over_ranks_and_over_equal_facts_of_one_rank(name: str) -> None:
    smaller, larger = (holds(Role.GRADIENT_NORM, "float16", evidence={name: value}) for value in (0.25, 3.0))
    worst = 0.25 if name == "headroom" else 3.0
    for files in ([rank_file(0, smaller), rank_file(1, larger)], [rank_file(0, larger, smaller)]):
        (fact,) = merged(*files).facts
        assert fact.evidence == {name: worst}


def test_nan_and_inf_are_no_numbers_of_any_rank() -> None:
    one = holds(Role.GRADIENT_NORM, "float16", evidence={"inf_share": math.nan, "headroom": math.inf})
    other = holds(Role.GRADIENT_NORM, "float16", evidence={"inf_share": 0.5})
    for files in ([rank_file(0, one), rank_file(1, other)], [rank_file(0, other, one)], [rank_file(0, other, one)] * 2):
        (fact,) = merged(*files).facts
        assert fact.evidence == {"inf_share": 0.5}


def test_equal_facts_count_once_with_the_worst_evidence() -> None:
    site = Site("train.py", 3)
    one, other = (
        holds(Role.OPTIMIZER_STATE, "bfloat16", site=site, count=4, bytes=64, evidence={"updates_lost": lost})
        for lost in (0.1, 0.9)
    )
    both = merged(rank_file(0, one), rank_file(1, other))
    (fact,) = both.facts
    assert (fact.count, fact.bytes, fact.evidence) == (4, 64, {"updates_lost": 0.9})
    assert list(both.ranks_of()) == [(fact, [0, 1])]


def test_a_rank_with_another_dtype_in_the_same_module_differs() -> None:
    files = [rank_file(rank, holds(Role.MASTER_WEIGHT, "float32", "head")) for rank in range(7)]
    odd = rank_file(7, holds(Role.MASTER_WEIGHT, "bfloat16", "head"))
    (fact,) = merged(*files, odd).disagreements()
    assert fact.kind is Kind.RANKS_DIFFER
    assert (fact.role, fact.dtype) == (Role.MASTER_WEIGHT, "bfloat16")
    assert fact.detail == "rank 7 held bfloat16, ranks 0-6 held float32"


def test_pipeline_stages_with_different_modules_do_not_differ() -> None:
    first = rank_file(0, holds(Role.FORWARD_WEIGHT, "float32", "embedding"))
    second = rank_file(1, holds(Role.FORWARD_WEIGHT, "bfloat16", "head"))
    assert merged(first, second).disagreements() == []


def test_activations_may_differ_with_the_data() -> None:
    first, second = (rank_file(n, holds(Role.ACTIVATION, d)) for n, d in enumerate(("float32", "bfloat16")))
    assert merged(first, second).disagreements() == []


def test_what_one_rank_observed_is_observed() -> None:
    blind = rank_file(0, coverage=Coverage(not_observed={"loss": "no backward", "softmax": "none ran"}))
    both = merged(blind, rank_file(1, holds(Role.LOSS, "float32")))
    assert both.coverage.not_observed == {"softmax": "none ran"}


def test_ranks_that_set_up_differently_are_noted() -> None:
    first, second = (rank_file(n, coverage=Coverage(setup={"autocast": d})) for n, d in enumerate(("", "bfloat16")))
    assert merged(first, second).coverage.notes == ["rank 1: autocast is bfloat16, elsewhere "]


def test_a_fact_of_a_newer_vocabulary_is_counted_not_fatal() -> None:
    strange = RankFile(format=1, status="stopped", facts=[{"kind": "vibes"}])
    assert merged(strange).coverage.notes == ["rank 0: 1 facts are not in this precaudit's words"]


def test_hundreds_of_rank_files_merge_at_a_rate_that_does_for_thousands(tmp_path: Path) -> None:
    facts = [holds(Role.OPTIMIZER_STATE, "float32", f"layers.{n}", count=2).as_json() for n in range(250)]
    text = json.dumps({"format": 1, "status": "stopped", "world_size": 200, "steps": 3, "facts": facts})
    for rank in range(200):
        (tmp_path / f"rank-{rank}-{rank}.json").write_text(text.replace('"format": 1', f'"format": 1, "rank": {rank}'))
    began = time.process_time()
    notes: list[str] = []
    together = merged(*read_ranks(tmp_path, notes))
    assert (len(together.ranks), len(together.facts), notes) == (200, 250, [])
    assert time.process_time() - began < 5


def test_a_world_of_a_thousand_million_ranks_is_told_in_words_and_not_counted_out() -> None:
    began = time.process_time()
    assert roll.missing([3, 5], 10**9) == [
        "ranks 0-2, 4, 6-999999999 of 1000000000 wrote nothing here: on another node, or ended before joining"
    ]
    assert roll.missing([0, 1], 2) == []
    assert roll.missing([], 8) == []
    assert roll.missing([1], 2) == ["rank 0 of 2 wrote nothing here: on another node, or ended before joining"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "odd",
    [
        {"site": {"path": "a.py", "line": 1}},
        {"site": ["a.py", "1"]},
        {"site": ["a.py"]},
        {"site": [1, 2]},
        {"cause": [1, None]},
        {"cause": ["text", {"path": "a"}]},
        {"dtype": ["bfloat16"]},
        {"module": 3},
        {"count": "many"},
        {"bytes": None},
        {"evidence": {"state_frozen": "all"}},
        {"attrs": {"key": ["list"]}},
        {"parts": [{"name": "x"}]},
        {"kind": "no such kind"},
        {"role": "no such role"},
    ],
)
def test_a_fact_of_another_shape_is_a_note_and_the_others_count(odd: dict[str, object]) -> None:
    good = holds(Role.LOSS, "bfloat16")
    one = rank_file(0, good)
    one.facts.append({**holds(Role.OPTIMIZER_STATE, "float32").as_json(), **odd})
    out = merged(one)
    assert out.facts == [good]
    assert out.coverage.notes == ["rank 0: 1 facts are not in this precaudit's words"]
