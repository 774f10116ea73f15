"""`precaudit.snapshot`: what inspection of the objects finds, and no verdict that only a step could give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import unchanged_world
from test_audit import build, train

import precaudit
from precaudit.errors import UsageError


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    with unchanged_world():
        yield


def held(found: precaudit.Snapshot) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row.role, row.dtype): (row.tensors, row.bytes) for row in found.roles if row.dtype}


def test_it_counts_what_the_objects_hold_and_changes_none_of_it() -> None:
    model, optimizer = build(torch.float32)
    train(model, optimizer)
    before = [t.clone() for t in (*model.parameters(), *(s["exp_avg"] for s in optimizer.state.values()))]
    random = torch.get_rng_state()
    found = precaudit.snapshot(model, optimizer)
    parameters = list(model.parameters())
    size = sum(p.numel() * 4 for p in parameters)
    assert held(found) == {
        ("master_weight", "float32"): (len(parameters), size),
        ("optimizer_state", "float32"): (2 * len(parameters), 2 * size),
        ("forward_weight", "float32"): (len(parameters), size),
    }
    assert found.ok
    after = [*model.parameters(), *(s["exp_avg"] for s in optimizer.state.values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_a_bfloat16_model_under_adamw_is_found_without_a_step() -> None:
    model, optimizer = build(torch.bfloat16)
    train(model, optimizer, steps=1)
    assert {f.rule for f in precaudit.snapshot(model, optimizer).findings} == {"PA101", "PA301"}


def test_state_that_is_not_there_yet_is_unknown_and_says_so() -> None:
    model, optimizer = build(torch.float32)
    found = precaudit.snapshot(model, optimizer)
    assert found.inconclusive
    assert found.report.coverage.not_observed["optimizer_state"] == "nothing is kept before the first optimizer step"
    assert "inconclusive: without a step not everything can be told" in str(found)


class Compensated(torch.optim.Optimizer):
    """Keeps what rounding loses, so that bfloat16 is right here: a snapshot cannot know."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("lost", torch.zeros_like(p))


def test_low_state_of_an_optimizer_that_may_compensate_is_no_finding_and_not_ok() -> None:
    model, _ = build(torch.bfloat16)
    optimizer = Compensated(model.parameters())
    optimizer.step()
    found = precaudit.snapshot(model, optimizer)
    assert found.findings == []
    assert not found.ok
    why = found.report.coverage.not_observed["optimizer_state"]
    assert why.startswith("held in bfloat16 by Compensated, which may carry along what rounding loses")


def test_a_frozen_low_base_under_float32_adapters_is_clean() -> None:
    base = torch.nn.Linear(64, 64).bfloat16().requires_grad_(False)
    adapter = torch.nn.Linear(64, 2)
    optimizer = torch.optim.AdamW(adapter.parameters())
    adapter(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    found = precaudit.snapshot(torch.nn.ModuleList([base, adapter]), optimizer)
    assert found.ok
    assert held(found)["forward_weight", "bfloat16"][0] == 2


def test_norm_statistics_count_where_a_forward_pass_would_move_them() -> None:
    norm = torch.nn.BatchNorm1d(4).half()
    assert [f.rule for f in precaudit.snapshot(norm).findings] == ["PA402"]
    assert precaudit.snapshot(norm.eval()).findings == []


def test_nothing_to_look_at_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^snapshot: name a torch.nn.Module or an optimizer: precaudit.snapshot\("):
        precaudit.snapshot()


def test_several_models_and_optimizers_are_one_report() -> None:
    pairs = [build(torch.float32), build(torch.float32)]
    for model, optimizer in pairs:
        train(model, optimizer)
    one = held(precaudit.snapshot(*pairs[0]))
    both = held(precaudit.snapshot([m for m, _ in pairs], {str(n): o for n, (_, o) in enumerate(pairs)}))
    assert both == {key: (2 * tensors, 2 * size) for key, (tensors, size) in one.items()}
