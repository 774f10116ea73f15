"""PA213: what is not finite, the first operation that made it so, and what must stay silent."""

from __future__ import annotations

from collections.abc import Callable

import harness
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from precaudit.model.wire import Finding, Report


def only(report: Report) -> Finding:
    (found,) = [f for f in report.findings if f.rule == "PA213"]
    return found


def training(loss_of: Callable[[Tensor], Tensor], parameters: int = 3) -> Callable[[], None]:
    """Five steps of SGD on the loss of one parameter of ones."""

    def train() -> None:
        weight = nn.Parameter(torch.ones(parameters))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(5):
            loss = loss_of(weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


ORIGINS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "log of zero": (lambda w: (w * 0).log().mean(), "log gave inf of finite inputs (forward)"),
    "zero by zero": (lambda w: (w / torch.zeros(3)).sum() * 0, "div gave inf of finite inputs (forward)"),
    "exp past the range": (lambda w: (200 * w).exp().mean(), "exp gave inf of finite inputs (forward)"),
    "root differentiated at zero": (lambda w: (w - w).sqrt().sum(), "div gave inf of finite inputs (backward)"),
    "norm of nothing": (lambda w: w[:0].mean(), "mean gave nan of finite inputs (forward)"),
    "all targets ignored": (
        lambda w: F.cross_entropy(w[None], torch.tensor([-100])),
        "nll_loss_forward gave nan of finite inputs (forward)",
    ),
    "a row that is masked out": (
        lambda w: w.masked_fill(torch.ones(3).bool(), -torch.inf).softmax(0).sum(),
        "softmax gave nan of finite inputs (forward)",
    ),
    "log beside a mask": (
        lambda w: (w.masked_fill(torch.tensor([True, False, False]), -torch.inf).softmax(0) - 0.5).log().sum(),
        "log gave nan of finite inputs (forward)",
    ),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_the_first_operation_is_the_one_that_gave_it_of_finite_inputs(name: str) -> None:
    loss_of, first = ORIGINS[name]
    found = only(harness.trace_call(training(loss_of)))
    assert found.message.partition(": ")[2].partition(";")[0] == first


def test_a_parameter_that_was_nan_before_is_said_to_be_so() -> None:
    def train() -> None:
        weight = nn.Parameter(torch.tensor([1.0, float("nan")]))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()

    found = only(harness.trace_call(train))
    assert "was given a parameter that was nan already" in found.message
    assert found.severity.value == "error"


@pytest.mark.parametrize("loss_of", [lambda w: w.sum() * 1e-30, lambda w: (1e38 * w).sum() * 1e-38])
def test_large_and_small_numbers_are_finite(loss_of: Callable[[Tensor], Tensor]) -> None:
    assert not [f for f in harness.trace_call(training(loss_of)).findings if f.rule == "PA213"]


def test_nothing_is_looked_at_under_values_off_and_the_report_says_so() -> None:
    report = harness.trace_call(training(lambda w: (w * 0).log().mean()), values="off")
    assert not [f for f in report.findings if f.rule == "PA213"]
    assert any("finite was not observed" in note for note in report.coverage.notes)


def test_the_row_of_a_loss_that_is_nan_is_not_ok() -> None:
    report = harness.trace_call(training(lambda w: (w * 0).log().mean()))
    assert {row.verdict for row in report.roles if row.role in ("loss", "master_weight")} == {"violation"}


def leaves_out_nan(training_mode: bool) -> Callable[[], None]:
    def train() -> None:
        net = nn.Linear(4, 1).train(training_mode)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(8):
            loss = (net(torch.ones(2, 4)) * 0).log().mean()
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()

    return train


def test_steps_that_the_loop_leaves_out_for_their_nan_loss_are_told() -> None:
    report = harness.trace_call(leaves_out_nan(True))
    assert only(report).message.startswith("the loss is")
    assert any("without a backward" in note for note in report.coverage.notes)


def test_a_model_that_is_only_evaluated_trains_nothing() -> None:
    report = harness.trace_call(leaves_out_nan(False))
    assert report.findings == []
    assert report.coverage.steps == 0
    assert not any("without a backward" in note for note in report.coverage.notes)


@pytest.mark.parametrize("how", ["data in place", "no_grad", "other memory", "other leaves"])
def test_hand_written_updates_take_steps_of_all_their_micro_batches(how: str) -> None:
    def train() -> None:
        weights = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3, 1))]
        for _ in range(6):
            for _ in range(3):
                (torch.randn(2, 4) @ weights[0] @ weights[1]).square().mean().backward()
            gradients = [w.grad for w in weights]
            if how == "data in place":
                for w, g in zip(weights, gradients, strict=True):
                    w.data.add_(g, alpha=-0.01)
            elif how == "no_grad":
                with torch.no_grad():
                    for w, g in zip(weights, gradients, strict=True):
                        w -= 0.01 * g
            elif how == "other memory":
                for w, g in zip(weights, gradients, strict=True):
                    w.data = w.data - 0.01 * g
            else:
                weights = [nn.Parameter(w.detach() - 0.01 * g) for w, g in zip(weights, gradients, strict=True)]
            for w in weights:
                w.grad = None

    report = harness.trace_call(train)
    assert report.coverage.setup["optimizer"] == "hand-written update"
    assert report.coverage.steps == 2
    assert report.coverage.micro_batches == 6
    seen = {(row.role, row.dtype, row.tensors) for row in report.roles if row.verdict == "ok"}
    wanted = {(role, "float32", 2) for role in ("master_weight", "gradient", "gradient_accumulation")}
    assert wanted <= seen
