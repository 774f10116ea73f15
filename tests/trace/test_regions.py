"""Whose autocast region it is: the script's own, a framework's around the script's step, or one that never trains."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_oracle import loss_of, small, traced

TRAINER = """
import contextlib
import torch


@contextlib.contextmanager
def autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


class Region:
    def __enter__(self):
        self.inner = torch.autocast("cpu", dtype=torch.bfloat16)
        self.inner.__enter__()

    def __exit__(self, *error):
        self.inner.__exit__(*error)


def fit(step):
    for _ in range(4):
        with autocast():
            step()
"""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "somebodys_trainer.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "somebodys_trainer", raising=False)
    import somebodys_trainer  # type: ignore[import-not-found]

    return somebodys_trainer


def step_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model, torch.randn(16, 6)).backward()
    optimizer.step()


def test_a_trainer_that_runs_the_users_step_inside_its_region_is_not_the_users_mistake(trainer: ModuleType) -> None:
    def train() -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        trainer.fit(lambda: step_of(model, optimizer))

    assert not {f.rule for f in traced(train).findings} & {"PA701", "PA305"}


@pytest.mark.parametrize("how", ["autocast", "Region", "stack"])
def test_the_users_own_with_is_whoever_made_the_region(trainer: ModuleType, how: str) -> None:
    def train() -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            with contextlib.ExitStack() as stack:
                stack.enter_context(trainer.autocast() if how == "stack" else getattr(trainer, how)())
                step_of(model, optimizer)

    assert {f.rule for f in traced(train).findings} >= {"PA701", "PA305"}


def test_a_region_that_only_predicts_declares_nothing_about_training() -> None:
    def train() -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                model(torch.randn(16, 6))
            step_of(model, optimizer)

    assert not {f.rule for f in traced(train).findings} & {"PA504", "PA711"}
