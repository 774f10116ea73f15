"""Gives each launch test a desk: a working directory where `precaudit` runs on the stand-in torch and runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import STANDIN, Desk

from precaudit.launch import bootstrap


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    folder, temporary = tmp_path / "desk", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bootstrap, "RUNTIME", STANDIN / "runtime")
    monkeypatch.setattr(bootstrap.tempfile, "tempdir", str(temporary))
    checkout = str(Path(bootstrap.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STANDIN), checkout]))
    for name in ("PRECAUDIT_DISABLE", "PRECAUDIT_FOLDER", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield Desk(folder, capfd)
    assert not list(temporary.glob("precaudit-*")), "the private folder is still there"
