"""`--values off`, `sample` and `full`: how many elements of a tensor the trace looks at."""

from __future__ import annotations

from typing import Any

import harness
import pytest
import torch

from precaudit.model.wire import Report
from precaudit.runtime.trackers import flat_steps, kept, replay

WIDTH = 300
"""300 x 300 is more than one sample."""


def pure_bfloat16() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.LogSoftmax(-1)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(4):
        loss = model(torch.randn(8, WIDTH).bfloat16())[:, 0].float().mean().neg()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was compared with its float32 replay."""
    sizes: list[int] = []

    def counting(exact: torch.Tensor, before: torch.Tensor, after: torch.Tensor, lengths: list[int]) -> Any:
        sizes.extend(lengths)
        return kept.columns(exact, before, after, lengths)

    for module in (replay, flat_steps):
        monkeypatch.setattr(module, "columns", counting)
    return sizes


def trace(values: str) -> Report:
    torch.manual_seed(0)
    return harness.trace_call(pure_bfloat16, values=values)


def test_off_judges_dtypes_and_measures_nothing(looked_at: list[int]) -> None:
    report = trace("off")
    assert {"PA101", "PA301"} <= {finding.rule for finding in report.findings}
    assert not looked_at
    assert not any(fact.get("evidence") for fact in report.facts)


def test_sample_looks_at_no_more_than_65536_elements(looked_at: list[int]) -> None:
    report = trace("sample")
    assert WIDTH < max(looked_at) <= 65_536
    assert any("updates_lost" in finding.evidence for finding in report.findings)


def test_full_looks_at_every_element(looked_at: list[int]) -> None:
    report = trace("full")
    assert max(looked_at) == WIDTH * WIDTH
    assert any("updates_lost" in finding.evidence for finding in report.findings)


def test_the_next_session_samples_again() -> None:
    trace("off")
    assert trace("sample").findings[0].evidence


def test_storage_that_was_freed_since_is_not_read(looked_at: list[int]) -> None:
    """FSDP2 shrinks the storage of a gathered weight to nothing while views of it live on."""

    def frees() -> None:
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(4):
            gathered = torch.zeros(1000, dtype=torch.bfloat16)
            gathered.copy_(torch.ones(1000))
            weight.sum().backward()
            gathered.untyped_storage().resize_(0)
            optimizer.step()

    assert harness.trace_call(frees).coverage.steps
    assert 1000 not in looked_at
