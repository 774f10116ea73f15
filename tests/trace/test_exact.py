"""The exact step against the same step computed in float64 from the same start, and against planted errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from exact_programs import PROGRAMS, Program
from torch import Tensor

from precaudit.runtime import session as sessions
from precaudit.runtime.events import StepBegan, StepEnded
from precaudit.runtime.exact.step import ExactStep

SKIP = 1
NEAR = 1e-9


def run(name: str, exact_from: int | None = None, steps: int = SKIP + 2) -> Program:
    """The program after `steps` steps; from step `exact_from` on in float64."""
    torch.manual_seed(0)
    program = PROGRAMS[name]()
    for number in range(steps):
        if number == exact_from:
            program.widen()
        program.step(number)
    return program


class Seen:
    """What the companions were when the optimizer began and ended the exact step."""

    def __init__(self, name: str) -> None:
        self.gradients: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.state: list[dict[str, Tensor]] = []
        with harness.unchanged_world():
            torch.set_num_threads(1)
            session = sessions.start({**harness.SETTINGS, "exact": True, "cwd": "."})
            self.exact = session.parts.get(ExactStep)
            session.bus.on(StepBegan, lambda event: self.began(event.optimizer))
            session.bus.on(StepEnded, lambda event: self.ended(event.optimizer))
            try:
                self.program = run(name)
            finally:
                self.content: dict[str, Any] = session.parts.get(ExactStep).content(0) or {}
                self.notes = list(session.guard.notes)
                session.remove()

    def of(self, tensor: Tensor) -> Tensor:
        found = self.exact.follower.main.of(tensor)
        assert found is not None, "has no companion"
        return found.clone()

    def began(self, optimizer: Any) -> None:
        if self.exact.following:
            self.gradients = [self.of(p.grad) for p in parameters(optimizer)]

    def ended(self, optimizer: Any) -> None:
        if self.exact.following:
            self.weights = [self.of(p) for p in parameters(optimizer)]
            self.state = [
                {n: self.of(v) for n, v in optimizer.state[p].items() if isinstance(v, Tensor) and v.numel() > 1}
                for p in parameters(optimizer)
            ]


def parameters(optimizer: Any) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def off(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / (true.norm() + 1e-30))


@pytest.mark.parametrize("name", PROGRAMS)
def test_companions_are_the_step_in_float64(name: str) -> None:
    seen = Seen(name)
    assert seen.notes == []
    assert seen.content["step"] == SKIP + 1
    assert (seen.content["followed"], seen.content["not_followed"]) == (1.0, {})
    torch.set_num_threads(1)
    truth: dict[str, list[Any]] = {}
    program = PROGRAMS[name]

    def watch(optimizer: Any, *rest: Any) -> None:
        truth["gradients"] = [p.grad.clone() for p in parameters(optimizer)]

    torch.manual_seed(0)
    exact = program()
    exact.step(0)
    exact.widen()
    start = [p.detach().clone() for p in parameters_of(exact)]
    exact.steps.register_step_pre_hook(watch)
    exact.step(1)
    assert len(seen.gradients) == len(truth["gradients"]) > 5
    for found, true in zip(seen.gradients, truth["gradients"], strict=True):
        assert off(found, true) < NEAR
    moved = [p.detach() for p in parameters_of(exact)]
    for found, true, before in zip(seen.weights, moved, start, strict=True):
        assert off(found - before, true - before) < NEAR
    for found, p in zip(seen.state, parameters_of(exact), strict=True):
        for key, value in found.items():
            assert off(value, exact.steps.state[p][key]) < NEAR


def parameters_of(program: Program) -> list[Tensor]:
    """Those that got a gradient, which is gone after the step."""
    return [p for p in program.trained if p in program.steps.state or not program.steps.state]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_step_itself_is_bit_identical(name: str) -> None:
    torch.set_num_threads(1)
    plain = digest(run(name))
    assert digest(Seen(name).program) == plain


def digest(program: Program) -> str:
    sha = hashlib.sha256()
    held = [*program.net.state_dict().values(), *program.trained]
    held += [v for s in program.steps.state.values() for v in s.values() if isinstance(v, Tensor)]
    for tensor in (*held, torch.random.get_rng_state()):
        sha.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def test_a_kernel_that_is_wrong_and_a_cancellation_are_named_by_line(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(PLANTED, encoding="utf-8")
    report = harness.run(script, traced=True, exact=True).report
    assert report is not None
    assert report.exact is not None
    lines = [""] + [line.strip() for line in PLANTED.splitlines()]
    found = {lines[row.line or 0]: row for row in report.exact.operations if row.phase == "forward"}
    wrong = found["h = nn.functional.silu(h)"]
    assert (wrong.operation, wrong.dtype) == ("silu", "bfloat16")
    assert wrong.local == pytest.approx(0.03, rel=0.1)
    cancelled = found["h = far - 8192.0"]
    assert (cancelled.operation, cancelled.local) == ("sub", 0.0)
    assert cancelled.error > 1e-4
    assert (cancelled.amplification or 0) > 1000
    assert {id(row) for row in report.exact.operations[:2]} == {id(wrong), id(cancelled)}


PLANTED = """
import torch
from torch import nn

library = torch.library.Library("aten", "IMPL")
library.impl("silu", lambda x: x * torch.sigmoid(x) * (1.03 if x.dtype is torch.bfloat16 else 1.0), "CPU")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, h):
        h = self.one(h)
        h = nn.functional.silu(h)
        far = h.float() + 8192.0
        h = far - 8192.0
        return self.two(h.bfloat16())


def main():
    net = Net().bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        net(torch.randn(64, 8).bfloat16()).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    library._destroy()


main()
"""
