"""What the trace says updates lost, against the same optimizer run on float64 copies at every traced step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from torch import Tensor, nn

from precaudit.model.wire import Report

Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Oracle:
    """Copies an optimizer in float64 before each step, and steps the copies when the trace is over."""

    def __init__(self) -> None:
        self.should = self.stuck = 0
        self.error2 = self.step2 = 0.0
        self.state: dict[str, list[int]] = {}
        """State name -> elements that should have moved, elements that did not."""
        self._steps: list[tuple[Any, ...]] = []

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        twin, parameters = _wide(optimizer)
        before = [_everything(optimizer, p) for p in parameters]
        optimizer.step()
        after = [_everything(optimizer, p) for p in parameters]
        self._steps.append((twin, before, after))

    def count(self) -> None:
        """Steps the copies, and counts what the first optimizer lost."""
        for twin, before, after in self._steps:
            twin.step()
            copies = [p for group in twin.param_groups for p in group["params"]]
            for was, now, p in zip(before, after, copies, strict=True):
                exact = _everything(twin, p)
                for name in was:
                    if was[name].dtype is torch.float32:
                        continue
                    should = exact[name].float() != was[name].float()
                    stuck = should & (now[name] == was[name])
                    tally = self.state.setdefault(name, [0, 0])
                    tally[0], tally[1] = tally[0] + int(should.sum()), tally[1] + int(stuck.sum())
                self.error2 += float((now[""].double() - exact[""]).square().sum())
                self.step2 += float((exact[""] - was[""].double()).square().sum())
        self.should, self.stuck = self.state.pop("")

    @property
    def lost(self) -> float:
        return self.stuck / self.should

    @property
    def error(self) -> float:
        return math.sqrt(self.error2 / self.step2)


def _everything(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The parameter, under "", and its state, as they are now."""
    held = {name: t for name, t in optimizer.state[parameter].items() if isinstance(t, Tensor)}
    return {name: t.detach().clone() for name, t in {"": parameter, **held}.items()}


def _wide(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """A copy of the optimizer whose parameters, gradients and state are float64, and the parameters themselves."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    copies = {}
    for p in parameters:
        copies[id(p)] = nn.Parameter(p.detach().double())
        copies[id(p)].grad = p.grad.double() if p.grad is not None else None
    twin = copy.copy(optimizer)
    twin.__dict__ = {k: v for k, v in vars(optimizer).items() if k not in ("state", "param_groups")}
    twin.param_groups = [{**g, "params": [copies[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
    twin.state = type(optimizer.state)(optimizer.state.default_factory)  # type: ignore[attr-defined]
    for p in parameters:
        if p in optimizer.state:
            twin.state[copies[id(p)]] = {key: _wide_value(value) for key, value in optimizer.state[p].items()}
    return twin, parameters


def _wide_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        low = value.dtype in (torch.bfloat16, torch.float16)
        return value.detach().double() if low else value.detach().clone()
    return copy.deepcopy(value)


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 8)).to(dtype)


def train(make: Maker, dtype: torch.dtype, micro: int = 1, clip: float = 0.0, **settings: Any) -> tuple[Oracle, Report]:
    """A traced run, and what the oracle counted in the steps that were traced."""
    oracle = Oracle()
    model = net(dtype)
    optimizer = make(list(model.parameters()))

    def run() -> None:
        for step in range(4):
            optimizer.zero_grad()
            for _ in range(micro):
                x = torch.randn(32, 24).to(dtype)
                (model(x).float().square().mean() / micro).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if step in (1, 2):
                oracle.step(optimizer)
            else:
                optimizer.step()

    report = harness.trace_call(run, **{"values": "full", **settings})
    oracle.count()
    return oracle, report


def measured(report: Report, rule: str) -> dict[str, float]:
    (finding,) = [f for f in report.findings if f.rule == rule]
    return finding.evidence


KINDS: dict[str, Maker] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_updates_lost_is_what_float64_says(kind: str) -> None:
    oracle, report = train(KINDS[kind], torch.bfloat16)
    evidence = measured(report, "PA101")
    print(oracle.lost, evidence, oracle.error, oracle.state, report.coverage.notes)
    assert evidence["updates_lost"] == pytest.approx(oracle.lost, rel=0.01)
    assert evidence["applied_update_error"] == pytest.approx(oracle.error, rel=0.01)
