"""A traced run that is ended at some moment loses no step that was over, and its report tells why it ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from kills import WAYS, end_one


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_and_nothing_untrue_is_said(way: str) -> None:
    assert end_one(way, moment=7) == []
