"""Runs a CUDA script in this process under a preflight and the trace, and takes both out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import pytest

from precaudit.model.wire import Report
from precaudit.preflight.layer import Layer, start

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture
def layer() -> Iterator[Layer]:
    """A preflight of this process for one test."""
    one = start({"device": "h100"})
    try:
        yield one
    finally:
        one.remove()


@pytest.fixture
def fake() -> Iterator[Layer]:
    """A preflight without numbers."""
    one = start({"device": "h100", "fake": True})
    try:
        yield one
    finally:
        one.remove()


@pytest.fixture
def preflight(layer: Layer, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Callable[..., Report]:
    """Traces a script of `scripts/` and gives its report; what it raises fails the test."""
    single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
    for name, value in single.items():
        monkeypatch.setenv(name, str(value))
    return lambda name, *argv, **settings: _report(layer, name, argv, **settings)


@pytest.fixture
def alone() -> Iterator[Callable[..., Report]]:
    """The same as the second of four ranks, with values."""
    one = start({"device": "h100", "world": {"size": 4, "rank": 1, "node": 4}})
    try:
        yield lambda name, *argv, **settings: _report(one, name, argv, **settings)
    finally:
        one.remove()


def _report(layer: Layer, name: str, argv: Sequence[str], **settings: Any) -> Report:
    done = harness.run(SCRIPTS / name, argv, traced=True, eager=True, preflight=layer.told, **settings)
    assert not done.error, done.error
    assert done.report is not None
    return done.report
