"""A slice of `make fuzz`: mutated inputs of each kind, and each input that once failed, are taken."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from targets import RANK, REPORT, TARGETS, mutated

from precaudit.contracts import lockfile
from precaudit.model.wire import RankFile, Report


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_taken(name: str) -> None:
    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def each(chance: Random) -> None:
        TARGETS[name].run(mutated(TARGETS[name], chance))

    each()


FAILED_ONCE = [("notebook", b'{"cells": [{"cell_type": "code"}]}')]
"""What `make fuzz` found: (kind, input)."""


@pytest.mark.parametrize(("name", "data"), FAILED_ONCE, ids=[name for name, _ in FAILED_ONCE])
def test_what_failed_once_is_taken(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


def test_seeds_are_what_they_stand_for(tmp_path: Path) -> None:
    RankFile.model_validate(RANK)
    Report.model_validate(REPORT)
    path = tmp_path / "precision.lock"
    path.write_bytes(TARGETS["lock"].seeds[0])
    lockfile.read(path)
