"""Rarer optimizers, tensors and ways to run: the report's roles equal what inspection of the objects finds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_oracle import dtypes, inspected, inspected_state, loop, loss_of, reported, small, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

RARE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), eps=1e-4, foreach=False),
    "Adam maximize": lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4, maximize=True, amsgrad=True),
    "SGD nesterov fused": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
}


def quiet(report: Any) -> bool:
    return not [note for note in report.coverage.notes if "could not follow" in note]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", RARE)
def test_rare_forms_of_optimizers_equal_inspection(kind: str, dtype: str) -> None:
    model = small(getattr(torch, dtype))
    optimizer = RARE[kind](model.parameters())
    report = traced(lambda: loop(model, optimizer))
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer)
    assert reported(report, "master_weight") == inspected(list(model.parameters()))


def test_differentiable_adam_on_weights_that_are_no_leaves() -> None:
    start = torch.randn(6, requires_grad=True)
    weights = start.clone()
    optimizer = torch.optim.Adam([weights], lr=1e-2, eps=1e-4, differentiable=True)

    def train() -> None:
        for _ in range(5):
            loss = (weights * torch.randn(6)).sum().square() + weights.square().sum()
            (weights.grad,) = torch.autograd.grad(loss, weights, create_graph=True)
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"float32": 2}
    assert reported(report, "master_weight") == {"float32": 1}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_state_equals_inspection(dtype: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False)).to(getattr(torch, dtype))
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-2)
    report = traced(lambda: loop(model, optimizer))
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {dtype: 2}
    assert reported(report, "master_weight") == {dtype: 2}


def test_sparse_gradients_and_sparse_adam() -> None:
    vectors = nn.Embedding(12, 6, sparse=True)
    optimizer = torch.optim.SparseAdam(vectors.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(5):
            loss = vectors(torch.randint(0, 12, (8,))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert vectors.weight.grad is not None
    assert vectors.weight.grad.is_sparse
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"float32": 2}
    assert reported(report, "gradient") == {"float32": 1}
    assert report.findings == []


def test_inner_state_of_the_zero_redundancy_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = small(torch.bfloat16)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # init_process_group replaces it
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-3, eps=1e-4)
        report = traced(lambda: loop(model, optimizer))
        assert quiet(report)
        assert reported(report, "optimizer_state") == inspected_state(optimizer.optim) == {"bfloat16": 8}
        assert reported(report, "master_weight") == {"bfloat16": 4}
        assert report.coverage.traced_steps == [2, 3]
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
def test_gradients_wider_than_their_parameters() -> None:
    model = small(torch.bfloat16)
    for p in model.parameters():
        p.grad_dtype = torch.float32
    masters = [p.detach().float().requires_grad_(True) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-3)

    def train() -> None:
        for _ in range(5):
            for _ in range(2):
                (loss_of(model, torch.randn(16, 6)) / 2).backward()
            for master, p in zip(masters, model.parameters(), strict=True):
                master.grad, p.grad = p.grad, None
            optimizer.step()
            with torch.no_grad():
                for master, p in zip(masters, model.parameters(), strict=True):
                    p.copy_(master)

    report = traced(train)
    assert quiet(report)
    assert dtypes(report, "gradient") == {"float32"}
    assert "bfloat16" not in dtypes(report, "gradient_accumulation")
    assert reported(report, "master_weight") == {"float32": 4}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions_under_autocast_keep_their_dtypes(reentrant: bool) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def train() -> None:
        for _ in range(5):
            x = torch.randn(16, 6, requires_grad=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = checkpoint(model, x, use_reentrant=reentrant)
            optimizer.zero_grad()
            out.float().square().mean().backward()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert dtypes(report, "matmul_compute") <= {"bfloat16"}
    assert reported(report, "master_weight") == {"float32": 4}
    assert reported(report, "optimizer_state") == inspected_state(optimizer)
    assert not [f for f in report.findings if f.severity.value != "note"]


class Squared(torch.autograd.Function):
    """A hand-written function with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_functions_with_a_backward_of_their_own() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            Squared.apply(model(torch.randn(16, 6).bfloat16())).float().mean().backward()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert dtypes(report, "loss") == {"float32"}
    assert reported(report, "gradient") == inspected([p.grad for p in model.parameters()]) == {"bfloat16": 4}


@pytest.mark.parametrize("pool", [False, True])
def test_ops_of_a_thread_of_the_user_are_seen(pool: bool) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def work() -> None:
        for _ in range(5):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = model(torch.randn(16, 6))
                loss = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).float().square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def train() -> None:
        if pool:
            with ThreadPoolExecutor(1) as executor:
                executor.submit(work).result()
        else:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    report = traced(train)
    assert quiet(report)
    assert "PA403" in {f.rule for f in report.findings}, "only the ops themselves show it"
    assert torch._C._len_torch_dispatch_stack() == 0


def test_gradients_of_single_samples_through_vmap() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def one(weights: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (x[None],)).square().mean()

    def train() -> None:
        for _ in range(5):
            weights = {k: p.detach() for k, p in model.named_parameters()}
            each = torch.vmap(torch.func.grad(one), (None, 0))(weights, torch.randn(8, 6))
            model(torch.randn(8, 6)).square().mean().backward()
            for k, p in model.named_parameters():
                p.grad = each[k].mean(0)
            optimizer.step()
            optimizer.zero_grad()

    report = traced(train)
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"float32": 4}
    assert report.findings == []


def test_complex_float64_and_empty_parameters() -> None:
    torch.manual_seed(0)
    wide = nn.Linear(6, 4).double()
    phase = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
    empty = nn.Parameter(torch.zeros(0, 4))
    optimizer = torch.optim.Adam([*wide.parameters(), phase, empty], lr=1e-3)

    def train() -> None:
        for _ in range(5):
            y = (wide(torch.randn(8, 6).double()).to(torch.complex64) @ phase).abs().square().mean()
            loss = y + empty.sum() + wide(torch.randn(0, 6).double()).sum().float()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert reported(report, "master_weight").items() >= {"float64": 2, "float32": 1}.items()
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"float64": 4, "float32": 2}
    assert report.findings == []


def test_integer_boolean_and_meta_tensors_beside_training() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    counts, seen = torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.bool)

    def train() -> None:
        for _ in range(5):
            loop(model, optimizer, steps=1)
            counts.add_(1)
            seen.logical_or_(counts > 2)
            nn.Linear(64, 64, device="meta")(torch.empty(2, 64, device="meta"))

    report = traced(train)
    assert quiet(report)
    assert report.findings == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameter_added_between_steps_is_in_the_role_table(dtype: str) -> None:
    model = small(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
    more = nn.Parameter(torch.ones(2, dtype=getattr(torch, dtype)))

    def train() -> None:
        loop(model, optimizer, steps=1)
        optimizer.add_param_group({"params": [more]})
        for _ in range(4):
            optimizer.zero_grad()
            (model(torch.randn(16, 6, dtype=more.dtype)) * more).float().square().mean().backward()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {dtype: 10}
    assert reported(report, "master_weight") == {dtype: 5}
    assert report.coverage.parameters == 5


def test_accumulation_inside_accumulation() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> None:
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(2):
                halves = [torch.zeros_like(p, dtype=torch.bfloat16) for p in model.parameters()]
                for _ in range(2):
                    found = torch.autograd.grad(loss_of(model, torch.randn(16, 6)), list(model.parameters()))
                    for half, gradient in zip(halves, found, strict=True):
                        half.add_(gradient)
                for p, half in zip(model.parameters(), halves, strict=True):
                    p.grad = half.float() if p.grad is None else p.grad + half.float()
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert "bfloat16" in dtypes(report, "gradient_accumulation")


def test_several_losses_with_autograd_grad() -> None:
    model = small(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)

    def train() -> None:
        for _ in range(5):
            x = torch.randn(16, 6)
            out = model(x.bfloat16()).float()
            losses = [F.mse_loss(out, x[:, :2]), out.square().mean()]
            found = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
            for p, one, other in zip(model.parameters(), *found, strict=True):
                p.grad = one + other
            optimizer.step()

    report = traced(train)
    assert quiet(report)
    assert reported(report, "optimizer_state") == inspected_state(optimizer) == {"bfloat16": 4}
    assert reported(report, "gradient") == {"bfloat16": 4}
    assert dtypes(report, "loss") == {"float32"}
