"""What the trace reports of a role is what plain inspection of the objects finds, dtype by dtype, tensor by tensor."""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from precaudit.model.wire import Report

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def floating(value: Any) -> Iterable[torch.Tensor]:
    """Every floating tensor with at least one dimension in nested containers: 0-d step counters are no moments."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.dim() > 0:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floating(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from floating(item)


def inspected(*values: Any) -> dict[str, int]:
    """dtype -> how many tensors, by looking at the objects themselves."""
    return dict(Counter(name_of(t.dtype) for t in floating(list(values))))


def inspected_state(*optimizers: torch.optim.Optimizer) -> dict[str, int]:
    return inspected(*(list(optimizer.state.values()) for optimizer in optimizers))


def reported(report: Report, role: str) -> dict[str, int]:
    """dtype -> how many tensors, as the report's role table says."""
    return {row.dtype: row.tensors for row in report.roles if row.role == role and row.dtype}


def dtypes(report: Report, role: str) -> set[str]:
    return set(reported(report, role))


def traced(train: Callable[[], None], **settings: Any) -> Report:
    """The report of a trace of this function, run in this process."""
    return harness.trace_call(train, **settings)


class HandWritten(torch.optim.Optimizer):
    """A subclass whose moments have names of their own."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["seen"] = torch.zeros((), dtype=torch.float32)
                    state["drift"] = torch.zeros_like(p)
                    state["spread"] = [torch.zeros_like(p), torch.ones_like(p)]
                state["seen"] += 1
                state["drift"].mul_(0.9).add_(p.grad)
                state["spread"][0].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                state["spread"][1].lerp_(p.grad.abs(), 0.01)
                p.add_(state["drift"] / (state["spread"][0].sqrt() + 1e-3), alpha=-group["lr"])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4, amsgrad=True),
    "AdamW for-loop": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4, foreach=False),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-3),
    "RMSprop centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-3, centered=True),
    "RMSprop momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-3, momentum=0.9, centered=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2, history_size=3),
    "hand-written subclass": HandWritten,
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=1e-4),
    "Adadelta": lambda p: torch.optim.Adadelta(p, eps=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3, eps=1e-4),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-3, eps=1e-4),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3, eps=1e-4),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return F.mse_loss(model(x.to(dtype)).float(), x[:, :2].sin())


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        x = torch.randn(16, 6)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, x)  # noqa: B023  (called before the next turn of the loop)
            loss.backward()
            return loss

        optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else (closure(), optimizer.step())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_master_weights_and_gradients_equal_inspection(kind: str, dtype: str) -> None:
    model = small(DTYPES[dtype])
    optimizer = OPTIMIZERS[kind](model.parameters())
    state_at_step_3: dict[str, int] = {}

    def train() -> None:
        loop(model, optimizer, steps=3)
        state_at_step_3.update(inspected_state(optimizer))
        loop(model, optimizer, steps=2)

    report = traced(train)
    assert reported(report, "optimizer_state") == state_at_step_3
    assert reported(report, "master_weight") == inspected(list(model.parameters()))
    assert reported(report, "gradient") == inspected([p.grad for p in model.parameters()])
    assert report.coverage.parameters == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hand_written_loop_without_an_optimizer(dtype: str) -> None:
    model = small(DTYPES[dtype])
    velocity = [torch.zeros_like(p) for p in model.parameters()]

    def train() -> None:
        for _ in range(6):
            model.zero_grad()
            loss_of(model, torch.randn(16, 6)).backward()
            for p, v in zip(model.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad)
                p.data.sub_(0.01 * v)

    report = traced(train)
    assert reported(report, "master_weight") == inspected(list(model.parameters()))
    seen = Counter(reported(report, "optimizer_state")) + Counter(reported(report, "accumulator"))
    assert dict(seen) == inspected(velocity)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_masters_by_hand_make_the_low_weights_forward_weights(dtype: str) -> None:
    model = small(DTYPES[dtype])
    masters = [p.detach().float().requires_grad_(True) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-3)

    def train() -> None:
        for _ in range(5):
            model.zero_grad()
            (loss_of(model, torch.randn(16, 6)) * 256.0).backward()
            for master, weight in zip(masters, model.parameters(), strict=True):
                master.grad = weight.grad.float() / 256.0
            optimizer.step()
            with torch.no_grad():
                for master, weight in zip(masters, model.parameters(), strict=True):
                    weight.copy_(master)

    report = traced(train)
    assert reported(report, "master_weight") == inspected(masters) == {"float32": 4}
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"float32": 8}
    assert reported(report, "forward_weight") == inspected(list(model.parameters())) == {dtype: 4}


def test_masters_inside_optimizer_state_are_masters_not_moments() -> None:
    path = harness.FIXTURES / "PA301" / "trap_float32_state_on_bfloat16.py"
    report = harness.trace(path)
    assert reported(report, "master_weight") == {"float32": 4}
    assert reported(report, "optimizer_state") == {"float32": 8}
    assert reported(report, "forward_weight") == {"bfloat16": 4}


@pytest.mark.parametrize("copy_dtype", DTYPES)
def test_averaged_weights_are_accumulators_of_their_own_dtype(copy_dtype: str) -> None:
    model = small()
    average = copy.deepcopy(model).to(DTYPES[copy_dtype]).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            loop(model, optimizer, steps=1)
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.mul_(0.99).add_(p, alpha=0.01)

    report = traced(train)
    assert reported(report, "accumulator") == inspected(list(average.parameters())) == {copy_dtype: 4}
    assert reported(report, "optimizer_state") == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_norm_statistics_equal_inspection(dtype: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.to(DTYPES[dtype])
    report = traced(lambda: loop(model, torch.optim.SGD(model.parameters(), lr=1e-2)))
    buffers = [b for m in model.modules() if isinstance(m, nn.BatchNorm1d) for b in (m.running_mean, m.running_var)]
    assert reported(report, "norm_running_statistics") == inspected(buffers) == {dtype: 4}


def test_batch_norm_in_evaluation_mode_updates_no_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    report = traced(lambda: loop(model, torch.optim.SGD(model.parameters(), lr=1e-2)))
    assert not [f for f in report.findings if f.rule == "PA402"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("upcast", [False, True])
def test_loss_dtype_with_and_without_autocast(autocast: bool, upcast: bool) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    seen = set()

    def train() -> None:
        for _ in range(5):
            x = torch.randn(16, 6)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = model(x)
            loss = (out.float() if upcast else out).square().mean()
            seen.add(name_of(loss.dtype))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = traced(train)
    assert dtypes(report, "loss") == seen == {"bfloat16" if autocast and not upcast else "float32"}
    assert ("PA401" in harness.loud(report)) == (seen == {"bfloat16"})


def test_autocast_casts_are_forward_weights_and_matmuls_run_in_its_dtype() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(16, 6)).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = traced(train)
    assert dtypes(report, "matmul_compute") == {"bfloat16"}
    assert reported(report, "forward_weight") == {"bfloat16": 4}
    assert reported(report, "master_weight") == {"float32": 4}


def scaled_loop(scaler: torch.amp.GradScaler, model: nn.Module, optimizers: list[Any], steps: int, blow: float) -> None:
    for _ in range(steps):
        x = torch.randn(16, 6)
        with torch.autocast("cpu", dtype=torch.float16):
            out = model(x)
        loss = out.float().square().mean() * blow
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()


def test_loss_scale_is_one_float32_tensor() -> None:
    model = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    report = traced(lambda: scaled_loop(scaler, model, [optimizer], 5, 1.0))
    assert reported(report, "loss_scale") == {name_of(scaler._scale.dtype): 1} == {"float32": 1}
    assert dtypes(report, "loss") == {"float32"}
    assert report.coverage.skipped_steps == 0


def test_disabled_scaler_is_no_loss_scale() -> None:
    model = small()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    report = traced(lambda: scaled_loop(scaler, model, [torch.optim.SGD(model.parameters(), lr=1e-3)], 5, 1.0))
    assert reported(report, "loss_scale") == {}


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_attempts_are_counted_and_are_no_updates(fused: bool) -> None:
    model = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scales = []

    def train() -> None:
        for _ in range(12):
            scaled_loop(scaler, model, [optimizer], 1, 64.0)
            scales.append(scaler.get_scale())

    report = traced(train)
    skipped = sum(after < before for before, after in zip([2.0**16, *scales], scales, strict=False))
    assert skipped > 0
    assert report.coverage.skipped_steps == skipped
    assert report.coverage.attempts == skipped + report.coverage.steps


def test_two_optimizers_with_one_scaler() -> None:
    model = small()
    first = torch.optim.Adam(model[0].parameters(), lr=1e-3)
    second = torch.optim.SGD(model[2].parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    report = traced(lambda: scaled_loop(scaler, model, [first, second], 5, 1.0))
    assert reported(report, "optimizer_state") == inspected_state(first, second) == {"float32": 6}
    assert reported(report, "master_weight") == {"float32": 4}
    assert report.coverage.micro_batches == report.coverage.steps


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_accumulation_is_seen_where_several_micro_batches_meet(micro_batches: int) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(micro_batches):
                (loss_of(model, torch.randn(16, 6)) / micro_batches).backward()
            optimizer.step()

    report = traced(train)
    assert reported(report, "gradient_accumulation") == ({"float32": 4} if micro_batches > 1 else {})
    assert report.coverage.micro_batches == micro_batches * report.coverage.steps


def test_five_critic_steps_for_one_generator_step() -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def train() -> None:
        torch.manual_seed(0)
        generator, critic = nn.Linear(3, 6), nn.Linear(6, 1).bfloat16()
        optimizers.append(torch.optim.Adam(critic.parameters(), lr=1e-3))
        optimizers.append(torch.optim.RMSprop(generator.parameters(), lr=1e-3))
        for step in range(20):
            turn = step % 5 == 4
            fake = generator(torch.randn(8, 3))
            loss = critic((fake if turn else fake.detach()).bfloat16()).float().mean() * (-1 if turn else 1)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            optimizers[turn].step()

    report = traced(train)
    assert reported(report, "optimizer_state") == inspected_state(*optimizers) == {"bfloat16": 4, "float32": 2}
    assert reported(report, "master_weight") == {"bfloat16": 2, "float32": 2}


def test_optimizers_that_step_inside_backward() -> None:
    model = small()
    optimizers = {p: torch.optim.AdamW([p], lr=1e-3) for p in model.parameters()}

    def step_now(p: torch.Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_now)

    def train() -> None:
        for _ in range(6):
            loss_of(model, torch.randn(16, 6)).backward()

    report = traced(train)
    assert reported(report, "optimizer_state") == inspected_state(*optimizers.values()) == {"float32": 8}
    assert reported(report, "master_weight") == {"float32": 4}
    assert report.coverage.micro_batches == report.coverage.steps


def test_many_optimizers_inside_one_backward_are_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than the window has attempts: what counts is steps, and each is read and written once."""
    written = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (written.append(args), replace(*args)))

    def train() -> None:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
        optimizers = {p: torch.optim.SGD([p], lr=1e-3, momentum=0.9) for p in model.parameters()}

        def step_now(p: torch.Tensor) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step_now)
        for _ in range(5):
            model(torch.randn(3, 4)).square().mean().backward()

    report = traced(train, ranks_folder=str(tmp_path))
    assert report.coverage.traced_steps == [2, 3]
    assert reported(report, "optimizer_state") == {"float32": 40}
    assert len(written) <= 5


def test_two_losses_in_one_step_are_two_micro_batches_of_one_step() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, torch.randn(16, 6)).backward()
            model[0].weight.square().sum().backward()
            optimizer.step()

    report = traced(train)
    assert report.coverage.micro_batches == 2 * report.coverage.steps
    assert dtypes(report, "loss") == {"float32"}


def test_adapters_beside_a_frozen_low_base_are_adapter_parameters() -> None:
    report = harness.trace(harness.FIXTURES / "clean" / "float32_lora_on_bfloat16_base.py")
    assert reported(report, "adapter_parameter") == {"float32": 4}
    assert reported(report, "optimizer_state") == {"float32": 8}
    assert "bfloat16" not in dtypes(report, "master_weight")


def test_updates_lost_equals_the_share_counted_by_hand() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    shares = []

    def train() -> None:
        for _ in range(5):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            loss_of(model, x).backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            wanted = [1e-3 * p.grad.float() != 0 for p in model.parameters()]
            same = [(p.detach() == b) & w for p, b, w in zip(model.parameters(), before, wanted, strict=True)]
            shares.append(sum(int(s.sum()) for s in same) / sum(int(w.sum()) for w in wanted))

    report = traced(train)
    (finding,) = [f for f in report.findings if f.rule == "PA101"]
    assert min(shares[:3]) - 0.01 <= finding.evidence["updates_lost"] <= max(shares[:3]) + 0.01
    assert finding.evidence["updates_lost"] > 0.2
    assert finding.severity.value == "error", "measured damage raises the warning to an error"


def between(values: list[float], measured: float, slack: float = 0.02) -> bool:
    """Whether a number measured over several steps lies within what was counted by hand at each of them."""
    return min(values) - slack <= measured <= max(values) + slack


def test_applied_update_error_equals_a_float64_computation() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    errors = []

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, torch.randn(16, 6)).backward()
            before = [p.detach().double() for p in model.parameters()]
            optimizer.step()
            exact = torch.cat([-1e-2 * p.grad.double().flatten() for p in model.parameters()])
            moved = [(p.detach().double() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]
            errors.append(float((torch.cat(moved) - exact).norm() / exact.norm()))

    report = traced(train)
    (finding,) = [f for f in report.findings if f.rule == "PA101"]
    assert between(errors[:3], finding.evidence["applied_update_error"])
    assert finding.evidence["applied_update_error"] > 0.05


def test_state_frozen_equals_the_share_counted_by_hand() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    shares = []

    def squares() -> list[torch.Tensor]:
        return [optimizer.state[p]["exp_avg_sq"].detach().clone() for p in model.parameters() if optimizer.state[p]]

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, torch.randn(16, 6)).backward()
            before = squares()
            optimizer.step()
            stuck = total = 0
            for old, new, p in zip(before, squares(), model.parameters(), strict=False):
                exact = 0.999 * old.double() + 0.001 * p.grad.double().square()
                stuck += int(((new == old) & (exact != old.double())).sum())
                total += old.numel()
            if total:
                shares.append(stuck / total)

    report = traced(train)
    (finding,) = [f for f in report.findings if f.rule == "PA301"]
    assert between(shares[:2], finding.evidence["state_frozen"])
    assert finding.evidence["state_frozen"] > 0.02


def test_float32_training_loses_no_update_and_is_not_measured_as_damaged() -> None:
    model = small()
    report = traced(lambda: loop(model, torch.optim.AdamW(model.parameters(), lr=1e-3)))
    assert report.findings == []
    assert report.status == "clean"


def test_values_off_measures_nothing_and_still_reports_dtypes() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = traced(lambda: loop(model, optimizer), values="off")
    assert {"PA101", "PA301"} <= {f.rule for f in report.findings}
    assert all(not f.evidence for f in report.findings)


@pytest.mark.parametrize(("skip", "steps"), [(0, 1), (1, 2), (2, 3)])
def test_window_is_where_it_was_asked_for(skip: int, steps: int) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    report = traced(lambda: loop(model, optimizer, steps=8), skip=skip, steps=steps)
    assert report.coverage.traced_steps == list(range(skip + 1, skip + steps + 1))
    assert report.coverage.steps == steps


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_are_no_further_micro_batches(reentrant: bool) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            x = torch.randn(16, 6, requires_grad=True)
            optimizer.zero_grad()
            checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
            optimizer.step()

    report = traced(train)
    assert report.coverage.traced_steps == [2, 3]
    assert reported(report, "gradient_accumulation") == {}
    assert dtypes(report, "loss") == {"float32"}


def test_gradients_from_autograd_grad_train_like_any_others() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def train() -> None:
        for _ in range(5):
            gradients = torch.autograd.grad(loss_of(model, torch.randn(16, 6)), list(model.parameters()))
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient
            optimizer.step()

    report = traced(train)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"bfloat16": 4}
    assert reported(report, "master_weight") == {"bfloat16": 4}
    assert dtypes(report, "loss") == {"float32"}


def test_training_in_a_thread_of_the_users_own_is_seen() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train() -> None:
        thread = threading.Thread(target=loop, args=(model, optimizer))
        thread.start()
        thread.join()

    report = traced(train)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"bfloat16": 8}
    assert dtypes(report, "matmul_compute") == {"bfloat16"}


def test_dispatch_mode_of_the_user_counts_the_same_and_closes_rightly() -> None:
    counts = []

    def train() -> None:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with FlopCounterMode(display=False) as outer:
            for _ in range(5):
                with FlopCounterMode(display=False) as inner:
                    loop(model, optimizer, steps=1)
                counts.append(inner.get_total_flops())
        counts.append(outer.get_total_flops())

    report = traced(train)
    under_the_trace, counts = list(counts), []
    train()
    assert under_the_trace == counts
    assert report.coverage.traced_steps == [2, 3]


def test_exception_of_the_training_passes_untouched_and_what_was_seen_stays() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    problem = ValueError("out of data")
    reports = []

    def train() -> None:
        loop(model, optimizer, steps=2)
        raise problem

    with pytest.raises(ValueError, match="out of data") as caught:
        traced(train, sink=reports.append)
    assert caught.value is problem
    assert reported(reports[0], "optimizer_state") == {"bfloat16": 8}


def test_findings_name_the_module_they_come_from() -> None:
    report = harness.trace(harness.FIXTURES / "PA403" / "bad.py")
    (finding,) = [f for f in report.findings if f.rule == "PA403"]
    assert finding.module.endswith("norm")
    assert finding.count >= 2, "two blocks share the mistake"
