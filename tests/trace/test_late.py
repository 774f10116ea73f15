"""What happens after the traced steps: under --watch it is found, with the step at which it happened."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from precaudit.model.wire import Report

LATE = 60
"""The step at which it happens."""


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)).to(dtype)


def loss_of(model: nn.Module) -> torch.Tensor:
    x = torch.randn(32, 16)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), x[:, :4].argmax(dim=1))


def train(model: nn.Module, optimizer: Any, steps: int, each: Callable[[int], None] = lambda step: None) -> None:
    """`each` is called after each step, numbered from 1."""
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        each(step)


def traced(run: Callable[[], object], **settings: Any) -> Report:
    return harness.trace_call(run, **{"looks_on": True, **settings})


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if not finding.suppressed}


def notes(report: Report) -> str:
    return "\n".join(report.coverage.notes)


def steps_after(report: Report, step: int) -> list[int]:
    return [each for each in report.coverage.traced_steps if each > step]


def test_a_student_that_is_trained_after_its_teacher_is_traced() -> None:
    def run() -> None:
        teacher = small()
        train(teacher, torch.optim.Adam(teacher.parameters()), LATE)
        student = small(torch.bfloat16)
        train(student, torch.optim.AdamW(student.parameters()), 8)

    report = traced(run)
    assert rules(report) >= {"PA101", "PA301"}
    assert steps_after(report, 3) == [LATE + 2, LATE + 3]
    assert f"looked again from step {LATE + 2}: AdamW began to step" in notes(report)
    assert rules(traced(run, looks_on=False)) == set()


def averages(how: str, model: nn.Module) -> Callable[[], None]:
    """Begins to average the weights in bfloat16; each call is an update."""
    mine = [p.detach() for p in model.parameters()]
    if how == "AveragedModel":
        averaged = AveragedModel(model, avg_fn=lambda a, p, _: 0.99 * a + 0.01 * p.to(a.dtype)).bfloat16()
        return lambda: averaged.update_parameters(model)
    held = [p.to(torch.bfloat16) for p in mine]

    def update() -> None:
        if how == "in place":
            for average, p in zip(held, mine, strict=True):
                average.mul_(0.99).add_(p, alpha=0.01)
        else:
            torch._foreach_mul_(held, 0.99)
            torch._foreach_add_(held, [p.bfloat16() for p in mine], alpha=0.01)

    return update


@pytest.mark.parametrize("how", ["in place", "foreach", "AveragedModel"])
def test_an_average_that_begins_late_is_found(how: str) -> None:
    """Half a percent of the time: of steps this short about one in twenty is looked at."""
    model = small()
    updates: list[Callable[[], None]] = []

    def each(step: int) -> None:
        if step == LATE:
            updates.append(averages(how, model))
        for update in updates:
            update()

    report = traced(lambda: train(model, torch.optim.AdamW(model.parameters()), 400, each))
    assert "PA103" in rules(report), notes(report)
    assert "between two steps" in notes(report)


def test_a_cast_for_a_checkpoint_that_the_live_model_keeps_is_found_with_its_step() -> None:
    model = small()
    files: list[io.BytesIO] = []

    def each(step: int) -> None:
        if step == LATE:
            files.append(io.BytesIO())
            torch.save(model.half().state_dict(), files[0])

    def run() -> None:
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), LATE + 10, each)

    report = traced(run)
    assert "PA102" in rules(report)
    assert f"step {LATE + 1}: half() was called on a model that an optimizer holds" in notes(report)


def test_optimizer_state_that_is_saved_in_half_late_is_found_with_its_step() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())

    def each(step: int) -> None:
        if step == LATE:
            state = copy.deepcopy(optimizer.state_dict())
            for slots in state["state"].values():
                slots["exp_avg_sq"] = slots["exp_avg_sq"].half()
            torch.save({"model": model.state_dict(), "optimizer": state}, io.BytesIO())

    report = traced(lambda: train(model, optimizer, LATE + 5, each))
    assert [(f.rule, f"after step {LATE}" in f.message) for f in report.findings] == [("PA602", True)]


def test_a_resume_from_a_checkpoint_of_low_weights_is_found() -> None:
    def run() -> None:
        model = small()
        train(model, optimizer := torch.optim.AdamW(model.parameters()), LATE)
        weights = {name: value.bfloat16() for name, value in model.state_dict().items()}
        saved = {"model": weights, "optimizer": copy.deepcopy(optimizer.state_dict())}
        model = small()
        optimizer = torch.optim.AdamW(model.parameters())
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train(model, optimizer, 8)

    assert "PA105" in rules(traced(run))


def test_layers_that_are_unfrozen_late_in_bfloat16_are_found() -> None:
    """A frozen base may be low; once it is trained it is a master."""

    def run() -> None:
        model = small()
        model[0].to(torch.bfloat16).requires_grad_(False)
        cast = nn.Sequential(model[0], nn.GELU(), model[2])
        cast[0].register_forward_hook(lambda module, args, out: out.float())
        cast[0].register_forward_pre_hook(lambda module, args: args[0].bfloat16())
        optimizer = torch.optim.AdamW(list(cast[2].parameters()))

        def each(step: int) -> None:
            if step == LATE:
                cast[0].requires_grad_(True)
                optimizer.add_param_group({"params": list(cast[0].parameters())})

        for step in range(1, LATE + 300):
            optimizer.zero_grad()
            x = torch.randn(32, 16)
            F.cross_entropy(cast(x), x[:, :4].argmax(dim=1)).backward()
            optimizer.step()
            each(step)

    report = traced(run)
    assert "PA101" in rules(report), notes(report)


def test_a_loss_that_is_nan_late_is_found_with_its_step() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def each(step: int) -> None:
        if step == LATE:
            optimizer.param_groups[0]["lr"] = float("nan")

    report = traced(lambda: train(model, optimizer, LATE + 10, each))
    found = {finding.rule: finding for finding in report.findings}
    assert set(found) == {"PA213"}
    assert f"step {LATE + 2}" in notes(report) + found["PA213"].message


def test_steps_that_are_skipped_late_are_found_and_the_scales_are_told() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def run() -> None:
        for step in range(1, LATE + 40):
            optimizer.zero_grad()
            loss = loss_of(model) * (float("inf") if step > LATE else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    report = traced(run)
    assert rules(report) >= {"PA210"}
    assert f"steps {LATE + 1} to" in notes(report)
    assert "at loss scales from 1024" in notes(report)


def test_further_windows_open_at_the_steps_that_are_asked_for() -> None:
    model = small()
    modes: dict[int, bool] = {}

    def each(step: int) -> None:
        modes[step] = any(type(m).__module__.startswith("precaudit") for m in _get_current_dispatch_mode_stack())

    report = traced(lambda: train(model, torch.optim.AdamW(model.parameters()), 60, each), at=(20, 40), looks_on=False)
    assert report.coverage.traced_steps == [2, 3, 20, 21, 40, 41]
    assert report.findings == []
    assert "looked again from step 20: --at" in notes(report)


def test_nothing_new_opens_no_window() -> None:
    """Evaluation, a schedule, logging and a copy of the weights for a file are nothing new."""
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def each(step: int) -> None:
        schedule.step()
        if step % 10 == 0:
            with torch.no_grad():
                model.eval()
                loss_of(model).item()
                model.train()
        if step % 50 == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, io.BytesIO())

    report = traced(lambda: train(model, optimizer, 150, each))
    assert (report.coverage.traced_steps, report.findings) == ([2, 3], [])


def test_results_are_the_same_to_the_last_bit_with_sentinels() -> None:
    def run() -> torch.Tensor:
        model = small()
        train(model, torch.optim.AdamW(model.parameters()), 100)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    plain, watched = run(), []
    traced(lambda: watched.append(run()), at=(30, 60))
    assert torch.equal(plain, watched[0])


def test_a_stopped_trace_goes_on_for_an_optimizer_that_exists_and_says_which_never_stepped() -> None:
    never: list[Any] = []

    def run() -> None:
        model, other = small(), small(torch.bfloat16)
        first = torch.optim.Adam(model.parameters())
        second = torch.optim.AdamW(other.parameters())
        never.append(torch.optim.RMSprop(small().parameters()))
        train(model, first, LATE)
        train(other, second, 8)

    report = traced(run, looks_on=False)
    assert rules(report) >= {"PA101", "PA301"}
    assert "RMSprop, made at test_late.py:" in notes(report)
    assert "did not step while the run was watched" in notes(report)
