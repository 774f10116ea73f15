"""What a page draws is what inspection finds: sizes of values counted by numpy, phases and casts as they happened."""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from precaudit.model.picture import Picture
from precaudit.runtime.trackers.exponents import FIRST, LOWEST, NOT_FINITE, SLOTS, ZERO, by_sorting, counted


def by_numpy(values: np.ndarray[Any, Any]) -> dict[int, int]:
    """Exponent -> how many of these have it, by numpy's own frexp."""
    size = np.abs(values.astype(np.float64))
    size = size[np.isfinite(size) & (size > 0)]
    exponents, counts = np.unique(np.frexp(size)[1] - 1, return_counts=True)
    return dict(zip(exponents.tolist(), counts.tolist(), strict=True))


def shown(counts: torch.Tensor) -> dict[int, int]:
    return {at - FIRST + LOWEST: int(n) for at, n in enumerate(counts.tolist()) if at >= FIRST and n}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exponents_are_counted_as_numpy_does_subnormals_included(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    torch.manual_seed(0)
    values = torch.cat([
        (torch.randn(5000) * torch.exp2(torch.randint(-30, 15, (5000,)).float())).to(dtype),
        torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), info.max], dtype=dtype),
        torch.tensor([info.smallest_normal * info.eps, -info.smallest_normal * info.eps], dtype=dtype),
    ])  # fmt: skip
    counts = counted(values)
    assert counts.numel() == SLOTS
    assert int(counts[NOT_FINITE]) == 3
    assert int(counts[ZERO]) == int((values == 0).sum())
    assert shown(counts) == by_numpy(values.float().numpy())


def test_what_other_devices_count_by_sorting_comes_to_the_same() -> None:
    slots = torch.randint(0, SLOTS, (4000,), dtype=torch.int32)
    assert torch.equal(by_sorting(slots), torch.bincount(slots, minlength=SLOTS))


def training(dtype: torch.dtype, steps: int = 3) -> tuple[Picture, nn.Module, Any, list[torch.Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 4)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    kept: list[torch.Tensor] = []

    def train() -> None:
        for step in range(steps):
            before = [p.detach().clone() for p in model.parameters()]
            x, y = torch.randn(16, 12, dtype=dtype), torch.randint(0, 4, (16,))
            F.cross_entropy(model(x).float(), y).backward()
            optimizer.step()
            if step == 1:  # the first of the traced steps
                kept.extend(p.grad.detach().clone() for p in model.parameters() if p.grad is not None)
                kept.extend(after.detach() - old for after, old in zip(model.parameters(), before, strict=True))
                kept.extend(p.detach().clone() for p in model.parameters())
                kept.extend(optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters())
            optimizer.zero_grad()

    report = harness.trace_call(train)
    assert report.picture is not None
    return report.picture, model, optimizer, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_histograms_are_of_what_the_first_traced_step_held(dtype: torch.dtype) -> None:
    picture, _, _, kept = training(dtype)
    name = str(dtype).removeprefix("torch.")
    found = {one.what: one for one in picture.histograms if one.dtype == name}
    assert {"weights", "gradients", "updates", "activations", "AdamW.exp_avg", "AdamW.exp_avg_sq"} <= set(found)
    for at, what in enumerate(("gradients", "updates", "weights", "AdamW.exp_avg_sq")):
        held = torch.cat([one.reshape(-1) for one in kept[at * 4 : at * 4 + 4]]).float().numpy()
        one = found[what]
        drawn = {one.lowest + offset: count for offset, count in enumerate(one.counts) if count}
        assert drawn == by_numpy(held), what
        assert (one.zeros, one.elements) == (int((held == 0).sum()), held.size)


def test_nothing_is_counted_where_values_are_not_to_be_read() -> None:
    report = harness.trace_call(one_step_each(), values="off")
    assert report.picture is not None
    assert report.picture.histograms == []


def one_step_each() -> Any:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                out = model(torch.randn(2, 4))
            out.float().square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


def test_the_timeline_has_the_phases_in_order_and_the_casts_where_they_were() -> None:
    report = harness.trace_call(one_step_each())
    line = report.picture.timeline if report.picture is not None else None
    assert line is not None
    assert line.step == 2
    assert [phase.name for phase in line.phases] == [
        "forward", "backward", "between backward and step", "optimizer step",
    ]  # fmt: skip
    assert line.phases[0].start == 0
    assert all(one.end == other.start for one, other in zip(line.phases, line.phases[1:], strict=False))
    forward = line.phases[0].end
    down = [mark for mark in line.marks if (mark.what, mark.target) == ("cast", "bfloat16") and mark.at <= forward]
    assert sum(mark.count for mark in down) == 3  # input, weight and bias
    between = line.phases[2]
    width = line.seconds / 80
    norms = [mark for mark in line.marks if mark.what == "gradient norm"]
    assert norms
    assert all(between.start - width <= mark.at <= between.end + width for mark in norms)


def test_a_loss_scale_is_told_with_the_gradients() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    def train() -> None:
        for _ in range(4):
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.randn(2, 4)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    report = harness.trace_call(train)
    assert report.picture is not None
    assert report.picture.loss_scale == 512.0


def test_inventory_counts_the_bytes_of_each_name() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        for _ in range(4):
            model(torch.randn(2, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    rows = harness.trace_call(train).inventory
    weights = sum(row.bytes.get("weight", 0) for row in rows)
    assert weights == sum(p.nbytes for p in model.parameters())
    assert sum(row.bytes.get("AdamW.exp_avg", 0) for row in rows) == weights
