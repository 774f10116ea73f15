"""A new rule of the trace is a new file in watchers/ and a new one in rules/: nothing that exists is edited."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_oracle import traced

from precaudit import rulebook
from precaudit.runtime import watchers
from precaudit.shipped import rules_folder

WATCHER = '''
"""Variances computed in low precision, whatever for."""

from precaudit.model.vocabulary import Kind, Role

from ..events import Bus, StepEnded
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..dtypes import DTYPE_NAMES
from ..trackers.steps import Steps
from . import FORWARD, Watcher


class Variances(Watcher):
    def __init__(self, bus: Bus, ledger: Ledger, steps: Steps) -> None:
        self._ledger, self._steps, self._ended = ledger, steps, 0
        bus.on(StepEnded, self._step_ended)

    def reactions(self):
        yield FORWARD, ("var",), self._var, True

    def observations(self):
        yield Observation(Kind.CALL, attrs={"api": "steps-heard"}, count=self._ended)

    def _step_ended(self, event):
        assert event.optimizer in self._steps.built
        self._ended += 1

    def _var(self, name, args, kwargs, out):
        seen = Observation(Kind.OP, DTYPE_NAMES[out.dtype], Role.ACTIVATION, user_site(), attrs={"op": "variance"})
        self._ledger.once((Variances, out.dtype), seen)
'''
RULE = """
id = "PA499"
name = "low-variance"
title = "A variance is computed in low precision"
severity = "warning"
since = "0.1"
seen_by = ["trace"]
fact = "op"
forbid = ["low"]
when = { op = "variance" }
message = "a variance is computed in {dtype}"
why = "An example."
wrong = "x.var()"
right = "x.float().var()"
ignore_when = "Never."
fix = "compute it in float32"
references = ["https://example.org"]
"""


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"  # as ours are there, where precaudit is installed: no line of the user's
    folder.mkdir()
    (folder / "invented_variances.py").write_text(WATCHER)
    (tmp_path / "PA499-low-variance.toml").write_text(RULE)
    shutil.copytree(rules_folder() / "profiles", tmp_path / "profiles")
    monkeypatch.setattr(watchers, "__path__", [*watchers.__path__, str(folder)])
    monkeypatch.setattr(rulebook, "load", lambda: rulebook.load_folder(tmp_path))
    monkeypatch.delitem(sys.modules, f"{watchers.__name__}.invented_variances", raising=False)


@pytest.mark.usefixtures("invented")
def test_a_watcher_and_a_rule_from_another_folder_give_their_finding() -> None:
    def train() -> None:
        weight = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([weight], 0.1)
        for _ in range(4):
            (weight @ torch.randn(8, 8).bfloat16()).var(0).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    report = traced(train)
    assert [(f.rule, f.dtype, Path(f.path or "").name) for f in report.findings] == [
        ("PA499", "bfloat16", Path(__file__).name)
    ]
    assert [fact["count"] for fact in report.facts if fact["attrs"].get("api") == "steps-heard"] == [3]
