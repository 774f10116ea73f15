"""A lock made on one rank holds on two, and over two runs: nothing in it follows from the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import pair
import pytest
from test_matrix import DEEPSPEED, FAST, SLOW, Case

from precaudit.contracts import lockfile
from precaudit.contracts.drift import compare
from precaudit.contracts.precision import of_report

NEED_TWO = ("HYBRID_SHARD",)
"""One rank cannot be divided into groups of ranks."""


STAGES = ("stages 0 to 2", "stage 3")
"""Of DeepSpeed's recipes those in which the number of ranks decides what one of them holds."""


def differing(module: str, cases: Mapping[str, Case]) -> dict[str, list[str]]:
    """Recipe -> what two ranks hold otherwise than one, or than two ranks before."""
    options = {name: one.options for name, one in cases.items()}
    alone, together, again = (pair.run(module, options, world=world) for world in (1, 2, 2))
    found = {}
    for name in cases:
        locks = [of_report(ran[name].report) for ran in (alone, together, again)]
        wrong = [str(change) for change in compare(locks[0], locks[1]).changes]
        if lockfile.write(locks[1]) != lockfile.write(locks[2]):
            wrong.append("two runs on two ranks have other bytes")
        if wrong:
            found[name] = wrong
    return found


def test_a_lock_of_one_rank_holds_on_two_under_ddp() -> None:
    assert differing("recipes", {name: FAST["DDP"][name] for name in ("ddp plain", "ddp autocast")}) == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", SLOW)
def test_a_lock_of_one_rank_holds_on_two(group: str) -> None:
    cases = {**FAST.get(group, {}), **SLOW[group]}
    assert differing("recipes", {n: one for n, one in cases.items() if not any(word in n for word in NEED_TWO)}) == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", STAGES)
def test_a_lock_of_one_rank_holds_on_two_under_deepspeed(group: str) -> None:
    assert differing("deepspeed_recipes", DEEPSPEED[group]) == {}
