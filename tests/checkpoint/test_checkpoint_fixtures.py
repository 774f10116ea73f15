"""What the scripts of fixtures/PA6xx save is judged as their lines expect."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from conftest import Said

from precaudit import rulebook

SCRIPTS = sorted(harness.FIXTURES.glob("PA60[1-6]/*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_fixture_saves_breaks_exactly_its_rules(
    script: Path, tmp_path: Path, checkpoint: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, file = torch.save, tmp_path / "last.pt"

    def to_the_file(value: Any, target: Any) -> None:
        save(value, target)
        save(value, file)

    monkeypatch.setattr(torch, "save", to_the_file)
    runpy.run_path(str(script), run_name="__main__")
    monkeypatch.undo()
    rules = {rule for rule, severity in checkpoint(file).rules if severity != "note"}
    book = rulebook.load().rules
    wanted = harness.expected(script, "checkpoint")
    assert rules == {rule for rule in wanted if "checkpoint" in book[rule].seen_by}
