"""Of many steps to skip only the first and the last are looked at; those between cost nothing that shows."""

from __future__ import annotations

from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from precaudit.model.wire import Report


def training(steps: int, each: Callable[[int], None] = lambda number: None) -> Callable[[], None]:
    """A pure bfloat16 loop with an average of its own; `each` is called inside every step, numbered from 1."""

    def train() -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(16, 4).to(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        average = model.weight.detach().clone()
        for number in range(1, steps + 1):
            loss = F.cross_entropy(model(torch.randn(8, 16, dtype=torch.bfloat16)).float(), torch.randint(4, (8,)))
            loss.backward()
            each(number)
            optimizer.step()
            optimizer.zero_grad()
            average.mul_(0.99).add_(model.weight.detach(), alpha=0.01)

    return train


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if not finding.suppressed}


def test_only_the_first_and_the_last_step_to_skip_are_looked_at() -> None:
    seen: dict[int, bool] = {}

    def each(number: int) -> None:
        seen[number] = any(type(mode).__module__.startswith("precaudit") for mode in _get_current_dispatch_mode_stack())

    report = harness.trace_call(training(10, each), skip=6)
    assert seen == {n: n in (1, 6, 7, 8) for n in range(1, 11)}
    assert report.coverage.traced_steps == [7, 8]


def test_a_later_window_finds_what_an_early_one_finds() -> None:
    early, late = (harness.trace_call(training(10), skip=skip) for skip in (1, 6))
    assert rules(early) == rules(late) >= {"PA101", "PA103", "PA301"}
    assert [f.line for f in early.findings] == [f.line for f in late.findings]


def test_a_scaler_used_rightly_through_skipped_steps_is_not_misused() -> None:
    def train() -> None:
        torch.manual_seed(0)
        generator, critic = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        makes = torch.optim.SGD(generator.parameters(), lr=0.1)
        judges = torch.optim.SGD(critic.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", growth_interval=2)
        for _ in range(10):
            for optimizer, sign in ((judges, 1.0), (makes, -1.0)):
                makes.zero_grad()
                judges.zero_grad()
                scaler.scale(sign * critic(generator(torch.randn(8, 4))).mean()).backward()
                scaler.step(optimizer)
                scaler.update()

    for skip in (1, 3, 5):
        report = harness.trace_call(train, skip=skip)
        assert not [f for f in report.findings if f.rule in ("PA203", "PA204", "PA205")], (skip, report.findings)
