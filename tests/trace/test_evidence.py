"""Numbers a report measures, each against the same number computed in float64 beside the run."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def linear(width: int = 1) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(width, 4)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["arange", "cast", "cumsum"])
def test_positions_wrong_is_the_share_of_positions_that_are_not_their_integer(dtype: torch.dtype, way: str) -> None:
    count = 5000
    low: list[torch.Tensor] = []

    def train() -> None:
        model, optimizer = linear()
        for _ in range(3):
            if way == "arange":
                positions = torch.arange(count, dtype=dtype)
            elif way == "cast":
                positions = torch.arange(count).to(dtype)
            else:
                positions = torch.ones(count, dtype=dtype).cumsum(0)
            low.append(positions)
            step(optimizer, model(positions.float()[:, None] / count).square().mean())

    rule = "PA405" if way == "cumsum" else "PA408"
    finding = next(f for f in harness.trace_call(train).findings if f.rule in (rule, "PA408"))
    wrong = (low[-1].double() != torch.arange(count).double() + (way == "cumsum")).double().mean()
    assert finding.evidence["positions_wrong"] == pytest.approx(float(wrong))


def test_phase_error_is_no_less_than_that_of_any_angle() -> None:
    angles: list[torch.Tensor] = []

    def train() -> None:
        model, optimizer = linear()
        for _ in range(3):
            positions = torch.arange(900).to(torch.bfloat16)
            angle = positions * torch.tensor(0.37, dtype=torch.bfloat16)
            angles.append(angle)
            step(optimizer, model(angle.sin().float()[:, None]).square().mean())

    (finding,) = [f for f in harness.trace_call(train).findings if "phase_error" in f.evidence]
    largest = float(angles[-1].double().abs().max())
    # Half of the largest angle's unit in the last place, to within the position of the value in its binade.
    half_unit = 2.0 ** (math.floor(math.log2(largest)) - 8)
    assert half_unit <= finding.evidence["phase_error"] <= 2 * half_unit


def test_log_prob_error_is_the_mean_error_of_log_softmax() -> None:
    errors: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(8, 50).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            scores = 4 * model(torch.randn(16, 8).bfloat16())
            kept = F.log_softmax(scores, -1)
            exact = F.log_softmax(scores.detach().double(), -1)
            errors.append(float((kept.detach().double() - exact).abs().mean()))
            step(optimizer, F.nll_loss(kept.float(), torch.randint(50, (16,))))

    (finding,) = [f for f in harness.trace_call(train).findings if "log_prob_error" in f.evidence]
    assert finding.evidence["log_prob_error"] == pytest.approx(max(errors[1:]), rel=1e-3)


def test_certain_share_is_the_share_of_probabilities_that_are_0_or_1() -> None:
    shares: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(8, 50)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                likely = torch.sigmoid(20 * model(torch.randn(16, 8)))
            shares.append(float(((likely == 0) | (likely == 1)).double().mean()))
            step(optimizer, F.binary_cross_entropy(likely, torch.rand(16, 50).bfloat16()).float())

    (seen,) = [f for f in harness.trace_call(train).facts if "certain_share" in f["evidence"]]
    assert seen["evidence"]["certain_share"] == pytest.approx(max(shares[1:]))
    assert 0 < max(shares[1:]) < 1


def test_inf_share_of_a_gradient_norm_is_whether_it_overflowed() -> None:
    norms: list[float] = []

    def train() -> None:
        model = nn.Linear(64, 64, bias=False).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.full((64, 64), 30.0).half()).float().sum().backward()
            norms.append(float(model.weight.grad.square().sum().sqrt()))
            optimizer.step()

    (finding,) = [f for f in harness.trace_call(train).findings if f.rule == "PA209"]
    assert not any(map(math.isfinite, norms))
    assert finding.evidence["inf_share"] == 1.0


def test_skipped_share_and_loss_scale_are_those_of_the_scaler() -> None:
    scales: list[float] = []

    def train() -> None:
        model, optimizer = linear()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(torch.full((8, 1), math.inf))
            scales.append(scaler.get_scale())
            scaler.scale(out.float().mean()).backward()
            scaler.step(optimizer)
            scaler.update()

    finding = only(harness.trace_call(train), "PA210")
    assert finding.evidence["skipped_share"] == 1.0
    assert finding.evidence["loss_scale"] == max(scales)


def test_updates_lost_of_an_average_are_counted_by_hand() -> None:
    should = stuck = 0

    def train() -> None:
        nonlocal should, stuck
        torch.manual_seed(0)
        model = nn.Linear(32, 32)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        average = model.weight.detach().bfloat16()
        for at in range(4):
            step(optimizer, model(torch.randn(8, 32)).square().mean())
            was, w = average.clone(), model.weight.detach().bfloat16()
            average.mul_(0.999).add_(w, alpha=0.001)
            if at in (0, 1, 2):
                exact = was.double() * 0.999 + w.double() * 0.001
                moves = exact.float() != was.float()
                should, stuck = should + int(moves.sum()), stuck + int((moves & (average == was)).sum())

    finding = only(harness.trace_call(train), "PA103")
    assert finding.evidence["updates_lost"] == pytest.approx(stuck / should, rel=0.02)
    assert stuck / should > 0.1


def by_assignment(p: torch.Tensor, g: torch.Tensor) -> None:
    p -= 1e-2 * g


def by_data(p: torch.Tensor, g: torch.Tensor) -> None:
    p.data.add_(g.data, alpha=-1e-2)


def by_square(p: torch.Tensor, g: torch.Tensor) -> None:
    p.sub_((g * g).sqrt_().mul_(1e-2) * g.sign())


@pytest.mark.parametrize("update", [by_assignment, by_data, by_square])
def test_a_step_that_the_loop_takes_itself_loses_what_float64_says(
    update: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    should = stuck = 0

    def train() -> None:
        nonlocal should, stuck
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).bfloat16()
        for at in range(4):
            model.zero_grad()
            model(torch.randn(16, 32).bfloat16()).float().square().mean().backward()
            for p in model.parameters():
                was = p.detach().clone()
                with torch.no_grad():
                    update(p, p.grad)
                if at in (1, 2):
                    exact = was.double()
                    update(exact, p.grad.double())
                    moves = exact.float() != was.float()
                    should, stuck = should + int(moves.sum()), stuck + int((moves & (p == was)).sum())

    evidence = only(harness.trace_call(train), "PA101").evidence
    assert evidence["updates_lost"] == pytest.approx(stuck / should, rel=0.01)


@pytest.mark.parametrize("way", ["in place", "out of place", "accumulate", "embedding"])
def test_sum_error_is_that_of_the_same_additions_in_float64(way: str) -> None:
    errors: list[float] = []

    def summed(values: torch.Tensor, to: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        if way == "in place":
            return into.clone().index_add_(0, to, values, alpha=2)
        if way == "out of place":
            return into.index_add(0, to, values)
        return into.index_put((to,), values, accumulate=True)

    def train() -> None:
        torch.manual_seed(0)
        model, table = nn.Linear(8, 1), nn.Parameter(torch.randn(4, 3).bfloat16())
        optimizer = torch.optim.SGD([*model.parameters(), table], lr=1e-3)
        for _ in range(3):
            to, into = torch.randint(4, (2000,)), torch.randn(4).bfloat16()
            if way == "embedding":
                weights = (3 + torch.randn(2000, 3)).bfloat16()
                step(optimizer, (F.embedding(to, table) * weights).float().sum() + 0 * model.weight.sum())
                kept, exact = table.grad, torch.zeros(4, 3).double().index_add(0, to, weights.double())
            else:
                values = (3 + model(torch.randn(2000, 8)).squeeze(1)).bfloat16()
                kept = summed(values, to, into)
                exact = into.double().index_add(0, to, values.double(), alpha=2 if way == "in place" else 1)
                step(optimizer, kept.float().square().mean())
            errors.append(float((kept.detach().double() - exact.detach()).norm() / exact.detach().norm()))

    measured = only(harness.trace_call(train), "PA405").evidence["sum_error"]
    assert measured == pytest.approx(max(errors[1:]), rel=1e-3)
    assert measured > 0.01


def test_target_error_is_what_rounding_takes_of_the_spread() -> None:
    errors: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            wanted = 300 + torch.randn(64, 1)
            kept = wanted.bfloat16()
            errors.append(float((kept.double() - wanted.double()).square().mean().sqrt() / wanted.double().std()))
            step(optimizer, F.huber_loss(model(torch.randn(64, 4)), kept.float()))

    measured = only(harness.trace_call(train), "PA413").evidence["target_error"]
    assert measured == pytest.approx(max(errors[1:]), rel=1e-6)
    assert measured > 0.1


@pytest.mark.parametrize("bias", [False, True])
def test_choices_changed_is_the_share_of_rows_that_choose_otherwise_in_float32(bias: bool) -> None:
    shares: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        gate = nn.Linear(32, 48, bias=bias)
        optimizer = torch.optim.SGD(gate.parameters(), lr=1e-3)
        for _ in range(3):
            x = torch.randn(4096, 32)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = gate(x)
            weights, chosen = low.float().softmax(-1).topk(3)
            exact = F.linear(x.double(), gate.weight.double(), gate.bias.double() if bias else None).topk(3).indices
            shares.append(float((chosen.sort().values != exact.sort().values).any(-1).double().mean()))
            step(optimizer, weights.square().mean())

    measured = only(harness.trace_call(train), "PA414").evidence["choices_changed"]
    assert measured == pytest.approx(max(shares[1:]), rel=0.3)
    assert measured > 0.005


def test_gradient_rounding_is_how_far_subnormal_gradients_are_from_float32_ones() -> None:
    errors: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Linear(64, 32, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        for _ in range(3):
            x, weights = torch.randn(16, 64).half(), (2e-7 * torch.randn(16, 32)).half()
            optimizer.zero_grad()
            out = F.linear(x, model.weight.half())
            scaler.scale((out.float() * weights.float()).sum()).backward()
            exact = weights.double().T @ x.double()
            errors.append(float((model.weight.grad.double() - exact).norm() / exact.norm()))
            scaler.step(optimizer)
            scaler.update()

    measured = only(harness.trace_call(train), "PA211").evidence["gradient_rounding"]
    assert measured == pytest.approx(sum(errors[1:]) / len(errors[1:]), rel=0.1)
    assert 1e-3 < measured < 0.1
