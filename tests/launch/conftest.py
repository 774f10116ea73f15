"""Gives each launch test a desk: a working directory where `precaudit` runs, on the stand-in torch unless said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import STANDIN, Desk

from precaudit.launch import bootstrap

CHECKOUT = Path(bootstrap.__file__).parents[2]


@pytest.fixture
def real_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """A desk with the real torch and the real runtime, for what only they can show; seconds, not milliseconds."""
    folder, temporary = tmp_path / "desk", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bootstrap.tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("PRECAUDIT_DISABLE", "PRECAUDIT_FOLDER", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield Desk(folder, capfd)
    assert not list(temporary.glob("precaudit-*")), "the private folder is still there"


@pytest.fixture
def desk(real_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk on the stand-ins."""
    monkeypatch.setattr(bootstrap, "RUNTIME", STANDIN / "runtime")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STANDIN), str(CHECKOUT)]))
    return real_desk
