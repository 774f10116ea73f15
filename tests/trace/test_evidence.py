"""Numbers a report measures, each against the same number computed in float64 beside the run."""

from __future__ import annotations

import math

import harness
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from precaudit.model.wire import Finding, Report
from precaudit.report import words


def only(report: Report, rule: str) -> Finding:
    (finding,) = [f for f in report.findings if f.rule == rule]
    return finding


def test_accumulation_loss_is_the_relative_error_of_the_sum_of_micro_batches() -> None:
    errors, sizes = [], []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(24, 8).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            exact = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
            for _ in range(6):
                loss = model(torch.randn(16, 24).bfloat16()).float().square().mean()
                for total, g in zip(
                    exact, torch.autograd.grad(loss, list(model.parameters()), retain_graph=True), strict=True
                ):
                    total += g.double()
                loss.backward()
            kept = [p.grad.double() for p in model.parameters() if p.grad is not None]
            errors.append(sum(float((k - e).square().sum()) for k, e in zip(kept, exact, strict=True)))
            sizes.append(sum(float(e.square().sum()) for e in exact))
            optimizer.step()

    measured = only(harness.trace_call(train), "PA208").evidence["accumulation_loss"]
    assert measured == pytest.approx(math.sqrt(sum(errors[1:]) / sum(sizes[1:])), rel=1e-3)
    assert measured > 1e-4


def test_gradient_underflow_is_the_share_of_subnormals_among_float16_gradients() -> None:
    subnormal, nonzero = [], []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(32, 16, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(torch.randn(8, 32))
            loss = 3e-2 * out.float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            # The weight's gradient is computed in float16 and widened without loss.
            gradient = model.weight.grad.double().abs()
            subnormal.append(int(((gradient > 0) & (gradient < 2.0**-14)).sum()))
            nonzero.append(int((gradient > 0).sum()))
            optimizer.step()

    measured = only(harness.trace_call(train), "PA201").evidence["gradient_underflow"]
    assert measured == pytest.approx(sum(subnormal[1:]) / sum(nonzero[1:]))
    assert 0.05 < measured < 1


def test_headroom_is_the_bits_between_the_largest_value_and_65504() -> None:
    largest = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(16, 8, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(2e4 * torch.randn(8, 16).clamp(-1, 1))
            largest.append(float(out.detach().double().abs().max()))
            loss = (out.float() / 2e4).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    measured = only(harness.trace_call(train), "PA411").evidence["headroom"]
    assert measured == pytest.approx(min(math.log2(65504 / size) for size in largest[1:]))
    assert 0 < measured < 2


def test_hollow_masters_hold_bfloat16_values_to_the_last_bit() -> None:
    hollow = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(32, 16)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(4):
            loss = F.mse_loss(model(torch.randn(8, 32)), torch.zeros(8, 16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p.bfloat16())
            hollow.append(all(bool((p.double() == p.bfloat16().double()).all()) for p in model.parameters()))

    finding = only(harness.trace_call(train), "PA105")
    assert finding.evidence["hollow"] == 1.0
    assert all(hollow)


def test_parameters_that_did_not_move_at_all_are_named_and_the_others_are_not() -> None:
    moved: dict[str, bool] = {}

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    def train() -> None:
        torch.manual_seed(0)
        blocks = nn.Sequential(*(nn.Sequential(Scale(), nn.Linear(16, 16)) for _ in range(3)))
        model = nn.ModuleDict({"blocks": blocks, "norm": Scale(), "head": nn.Linear(16, 4)}).bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
        for step in range(3):
            out = model["head"](model["norm"](model["blocks"](torch.randn(8, 16).bfloat16())))
            optimizer.zero_grad()
            out.float().square().mean().backward()
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            for name, p in model.named_parameters():
                moved[name] = (step > 1 and moved[name]) or not torch.equal(p, before[name])

    finding = only(harness.trace_call(train), "PA101")
    still = {part.name: part.tensors for part in finding.parts if part.evidence["updates_lost"] == 1}
    assert still == {"blocks.*.*.weight": 3, "norm.weight": 1}
    assert {name for name, yes in moved.items() if not yes} == {f"blocks.{i}.0.weight" for i in range(3)} | {
        "norm.weight"
    }
    assert words.where(finding) == "4 of 12 parameters did not move at all: blocks.*.*.weight, norm.weight"
    losses = [part.evidence["updates_lost"] for part in finding.parts]
    assert losses == sorted(losses, reverse=True)


def test_a_parameter_that_holds_nan_takes_part_in_no_share() -> None:
    def train(broken: bool) -> Report:
        def run() -> None:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).bfloat16()
            other = nn.Parameter(torch.ones(64).bfloat16())
            optimizer = torch.optim.SGD([*model.parameters(), other], lr=1e-2)
            for _ in range(3):
                optimizer.zero_grad()
                (model(torch.randn(8, 8).bfloat16()).float().square().mean() + 0 * other.sum().float()).backward()
                if broken:
                    other.grad = torch.full_like(other, math.nan)
                optimizer.step()

        return harness.trace_call(run)

    clean, broken = (only(train(nan), "PA101").evidence for nan in (False, True))
    assert broken.pop("infinite") == 1
    assert broken == clean
    assert 0 < clean["updates_lost"] < 1


class SignSGD(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign(), alpha=-group["lr"])


def test_low_parameters_that_lost_no_update_are_not_called_damaged() -> None:
    lost = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(16, 16).bfloat16()
        optimizer = SignSGD(model.parameters(), {"lr": 0.05})
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(64, 16).bfloat16()).float().square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            steps = zip(model.parameters(), before, strict=True)
            lost.append(sum(int(((p == b) & (p.grad != 0)).sum()) for p, b in steps))

    report = harness.trace_call(train)
    (weights,) = [f for f in report.facts if f["role"] == "master_weight"]
    assert (lost[1:], weights["evidence"]["updates_lost"]) == ([0, 0], 0)
    assert "PA101" not in {finding.rule for finding in report.findings}
    assert {row.verdict for row in report.roles if row.role == "master_weight"} == {"allowed"}
