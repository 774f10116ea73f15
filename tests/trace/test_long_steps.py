"""Steps of many micro-batches: ops are seen in the first two and the last, unless every micro-batch counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import harness
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from precaudit.model.wire import Report

Seen = dict[tuple[int, int], bool]
"""(step, micro-batch), both from 1 -> whether ops were seen in its forward pass."""


def training(
    counts: Sequence[int],
    seen: Seen,
    dtype: torch.dtype = torch.float32,
    each: Callable[[torch.Tensor], None] = lambda loss: None,
) -> Callable[[], None]:
    """A classifier under autocast; its steps sum the gradients of so many micro-batches."""

    def train() -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step, count in enumerate(counts, start=1):
            for micro_batch in range(1, count + 1):
                modes = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
                seen[step, micro_batch] = "OpMode" in modes
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(torch.randn(8, 16, dtype=dtype))
                loss = F.cross_entropy(logits.float(), torch.randint(4, (8,))) / count
                loss.backward()
                each(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


def notes(report: Report) -> list[str]:
    return [note for note in report.coverage.notes if "op by op" in note]


def holds(report: Report) -> set[tuple[str, str]]:
    return {(row.role, row.dtype) for row in report.roles}


def test_the_first_two_and_the_last_micro_batch_are_seen_op_by_op() -> None:
    seen: Seen = {}
    report = harness.trace_call(training([8, 8, 8, 8], seen))
    assert {at for at, traced in seen.items() if traced} == {(s, m) for s in (2, 3) for m in (1, 2, 8)}
    assert report.coverage.micro_batches == 16
    assert notes(report) == [
        "of 16 micro-batches 6 were seen op by op, the first two and the last of each step; "
        "losses, gradients and loss scaling were seen in all"
    ]
    whole = harness.trace_call(training([4, 4, 4, 4], {}))
    assert notes(whole) == []
    assert holds(report) == holds(whole)


def test_a_step_that_ends_early_is_seen_to_its_end() -> None:
    seen: Seen = {}
    report = harness.trace_call(training([8, 5, 8, 8], seen))
    assert [m for (s, m), traced in seen.items() if s == 2 and traced] == [1, 2]
    assert report.coverage.traced_steps == [2, 3]
    assert (
        "the first two and, where their number was that of the step before, the last of each step" in notes(report)[0]
    )
    assert {row.role: row.tensors for row in report.roles if row.dtype == "float32"}["optimizer_state"] == 12


@pytest.mark.parametrize("what", ["low gradients", "low running sum"])
def test_every_micro_batch_is_seen_where_something_is_summed_in_low_precision(what: str) -> None:
    seen: Seen = {}
    total = torch.zeros((), dtype=torch.bfloat16)
    if what == "low gradients":
        train = training([8, 8, 8, 8], seen, torch.bfloat16)
    else:
        train = training([8, 8, 8, 8], seen, each=lambda loss: total.add_(loss.bfloat16()))
    report = harness.trace_call(train)
    assert {at for at, traced in seen.items() if traced} == {(s, m) for s in (2, 3) for m in range(1, 9)}
    assert notes(report) == []
    assert ("PA208" if what == "low gradients" else "PA304") in {finding.rule for finding in report.findings}
