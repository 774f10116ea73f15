"""The exact step against the same step computed in float64 from the same start, and against planted errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from exact_programs import PROGRAMS, Program
from torch import Tensor

from precaudit.report import exactpage, render
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


def lines(seen: Seen, what: str) -> dict[str, Any]:
    return {line["name"]: line for line in seen.content["budget"] if line["what"] == what}


def test_what_the_optimizer_lost_is_told_from_what_its_gradients_had_lost() -> None:
    seen = Seen("bfloat16, foreach")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    real = PROGRAMS["bfloat16, foreach"]()
    real.step(0)
    start = [p.detach().double() for p in real.trained]
    state = [{n: v.clone() for n, v in real.steps.state[p].items()} for p in real.trained]
    gradients: list[Tensor] = []
    real.steps.register_step_pre_hook(lambda *rest: gradients.extend(p.grad.clone() for p in real.trained))
    real.step(1)
    names = {id(p): name for name, p in real.net.named_parameters()}
    told = lines(seen, "update")
    for p, before, kept, gradient, exact in zip(real.trained, start, state, gradients, seen.weights, strict=True):
        alone = before.clone().requires_grad_()
        optimizer = torch.optim.AdamW([alone], lr=1e-3)
        optimizer.state[alone] = {n: v if n == "step" else v.double() for n, v in kept.items()}
        alone.grad = gradient.double()
        optimizer.step()
        alone = alone.detach()
        size = float((exact - before).norm())
        split = told[names[id(p)]]["split"]
        assert split["optimizer"] == pytest.approx(float((p.detach() - alone).norm()) / size, rel=1e-6)
        assert split["gradient"] == pytest.approx(float((alone - exact).norm()) / size, rel=1e-6)
        assert split["write-back"] == pytest.approx(split["optimizer"], rel=0.5, abs=1e-3)


def test_what_backward_lost_is_told_from_what_forward_had_lost(tmp_path: Path) -> None:
    """The head's gradient is a product of two things: of its input, which forward lost, and of what backward made."""
    seen = Seen("bfloat16, foreach")
    for line in lines(seen, "gradient").values():
        parts = line["split"]
        assert 0 < max(parts.values()) <= 1.5 * line["error"] < 1.5 * sum(parts.values()) + 1e-9


def exact_of(text: str, tmp_path: Path) -> Any:
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    report = harness.run(script, traced=True, exact=True).report
    assert report is not None
    assert report.exact is not None
    return report.exact


def test_a_gradient_that_is_exactly_zero_has_no_relative_error(tmp_path: Path) -> None:
    exact = exact_of(BEFORE_A_NORM, tmp_path)
    found = {line.name: line for line in exact.budget if line.what == "gradient"}
    assert found["0.bias"].nil
    assert found["0.bias"].error is None
    assert 0 < found["0.bias"].absolute < 1e-6
    assert not found["0.weight"].nil
    assert {line.name for line in exact.budget if line.what == "update" and line.nil} == {"0.bias"}


BEFORE_A_NORM = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(net.parameters())
for _ in range(3):
    net(torch.randn(32, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_loop_without_an_optimizer(tmp_path: Path) -> None:
    exact = exact_of(BY_HAND, tmp_path)
    gradient = gradient_by_hand()
    update = next(line for line in exact.budget if line.what == "update")
    found = next(line for line in exact.budget if line.what == "gradient")
    assert found.size == pytest.approx(float(gradient.norm()), rel=1e-9)
    assert update.size == pytest.approx(0.01 * float(gradient.norm()), rel=1e-9)
    assert update.error > 0.05


BY_HAND = """
import torch

torch.manual_seed(5)
weight = torch.randn(16, 16).bfloat16().requires_grad_()
for number in range(6):
    x = torch.full((4, 16), 0.5 + number).bfloat16()
    (x @ weight).float().square().mean().backward()
    with torch.no_grad():
        weight -= 0.01 * weight.grad
    weight.grad = None
"""


def gradient_by_hand() -> Tensor:
    """The gradient of the third step in float64, from the weights that the real run then had."""
    torch.manual_seed(5)
    weight = torch.randn(16, 16).bfloat16().requires_grad_()
    for number in range(3):
        if number == 2:
            weight = weight.detach().double().requires_grad_()
        x = torch.full((4, 16), 0.5 + number).to(weight.dtype)
        (x @ weight).to(torch.float32 if weight.dtype is torch.bfloat16 else weight.dtype).square().mean().backward()
        assert weight.grad is not None
        gradient = weight.grad
        if number < 2:
            with torch.no_grad():
                weight -= 0.01 * gradient
            weight.grad = None
    return gradient


def test_what_cannot_be_followed_is_said_with_its_share(tmp_path: Path) -> None:
    exact = exact_of(RECURRENT, tmp_path)
    assert exact.not_followed == {"mkldnn_rnn_layer": 1, "mkldnn_rnn_layer_backward": 1}
    assert 0.0 < exact.followed < 1.0
    partial = {line.name: line.partial for line in exact.budget if line.what == "gradient"}
    assert partial == {"0.weight_ih_l0": True, "0.weight_hh_l0": True, "0.bias_ih_l0": True, "0.bias_hh_l0": True,
                       "1.weight": True, "1.bias": True}  # fmt: skip


RECURRENT = """
import torch
from torch import nn

net = nn.ModuleList([nn.LSTM(4, 8), nn.Linear(8, 1)])
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(3):
    net[1](net[0](torch.randn(5, 2, 4))[0]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_an_op_that_drops_at_random_inside_its_kernel_is_not_called_exact(tmp_path: Path) -> None:
    exact = exact_of(RECURRENT.replace("net[1](net[0]", "net[1](nn.functional.rrelu(net[0]").replace(
        "(5, 2, 4))[0])", "(5, 2, 4))[0], training=True))"
    ), tmp_path)  # fmt: skip
    assert exact.not_followed["rrelu_with_noise"] == 1


def test_a_step_that_the_scaler_skipped_is_tried_again(tmp_path: Path) -> None:
    exact = exact_of(SKIPPED, tmp_path)
    assert exact.step == 3
    assert [line.name for line in exact.budget if line.what == "update"] == ["weight", "bias"]


SKIPPED = """
import torch
from torch import nn

net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
for number in range(5):
    scaler.scale(net(torch.randn(5, 4)).square().mean() * (float("inf") if number == 1 else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
"""


def test_findings_say_what_the_exact_step_measured_of_them(tmp_path: Path) -> None:
    exact = exact_of(LOW_NORM, tmp_path)
    report = harness.run(tmp_path / "train.py", traced=True, exact=True).report
    assert report is not None
    found = {finding.rule: finding for finding in report.findings}
    updates = [line for line in exact.budget if line.what == "update"]
    whole = sum(line.absolute**2 for line in updates) ** 0.5 / sum(line.size**2 for line in updates) ** 0.5
    assert found["PA101"].evidence["exact_update_error"] == pytest.approx(whole)
    parts = {part.name: part.evidence.get("exact_update_error") for part in found["PA101"].parts}
    assert parts["1.weight"] == pytest.approx(next(line.error for line in updates if line.name == "1.weight"))
    norm = found["PA403"]
    rows = [row for row in exact.operations if row.line == norm.line and row.phase == "forward"]
    assert norm.evidence["exact_local_error"] == pytest.approx(max(row.local for row in rows))
    assert 1e-3 < norm.evidence["exact_local_error"] < 4e-3


SOFTMAX = """
import torch

torch.manual_seed(0)
weight = torch.randn(16, 50, requires_grad=True)
x, y = torch.randn(64, 16), torch.randint(0, 50, (64, 1))
optimizer = torch.optim.SGD([weight], lr=0.0)
for _ in range(4):
    logits = (x @ weight).bfloat16()
    chosen = torch.log_softmax(logits, -1).float().gather(1, y)
    loss = -1024 * chosen.mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_how_far_the_rounding_of_a_softmax_moved_the_loss(tmp_path: Path) -> None:
    """To first order, which is all of it where the loss is a mean of what the softmax gives."""
    (tmp_path / "train.py").write_text(SOFTMAX)
    report = harness.run(tmp_path / "train.py", traced=True, exact=True).report
    assert report is not None
    (found,) = [one for one in report.findings if one.rule == "PA404"]
    torch.manual_seed(0)
    weight, x, y = torch.randn(16, 50), torch.randn(64, 16), torch.randint(0, 50, (64, 1))
    logits = (x @ weight).bfloat16()
    low, exact = (torch.log_softmax(one, -1).double().gather(1, y).mean() for one in (logits, logits.double()))
    assert found.evidence["exact_loss_change"] == pytest.approx(float((low - exact).abs() / low.abs()), rel=1e-4)


ANGLES = """
import torch

weight = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(4):
    angles = torch.outer(torch.arange(300, dtype=torch.bfloat16), torch.tensor([1.0, 0.1]))
    (weight * angles.cos()).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_how_far_angles_are_off(tmp_path: Path) -> None:
    exact = exact_of(ANGLES, tmp_path)
    places = torch.arange(300)
    true = float((places.bfloat16().double() - places.double()).abs().max())
    (phases,) = [line for line in exact.budget if line.what == "phases"]
    assert phases.absolute == pytest.approx(true, abs=1e-6) == 1.0
    report = harness.run(tmp_path / "train.py", traced=True, exact=True).report
    assert report is not None
    assert {one.evidence["exact_phase_error"] for one in report.findings if one.rule == "PA408"} == {phases.absolute}


@pytest.mark.parametrize(
    ("fixture", "rule", "name"),
    [
        ("PA208/bad.py", "PA208", "exact_gradient_error"),
        ("PA301/bad.py", "PA301", "exact_state_error"),
        ("PA401/bad.py", "PA401", "exact_loss_error"),
        ("PA405/bad.py", "PA405", "exact_error"),
        ("PA415/bad.py", "PA415", "exact_amplification"),
    ],
)
def test_evidence_of_each_kind_of_rule(fixture: str, rule: str, name: str) -> None:
    report = harness.run(harness.FIXTURES / fixture, traced=True, exact=True).report
    assert report is not None
    assert report.exact is not None
    (found,) = [one for one in report.findings if one.rule == rule]
    gradients = [line.error for line in report.exact.budget if line.what == "gradient"]
    worst = {
        "exact_gradient_error": max(gradients),
        "exact_state_error": max(
            (line.error or 0.0 for line in report.exact.budget if line.what == "state"), default=0.0
        ),
        "exact_loss_error": max(line.error for line in report.exact.budget if line.what == "loss"),
        "exact_amplification": max(row.amplification or 0.0 for row in report.exact.operations),
        "exact_error": max(row.error for row in report.exact.operations),
    }
    assert 0 < found.evidence[name] <= worst[name]


def test_float16_that_rounds_little_is_still_told(tmp_path: Path) -> None:
    """Its rounding is no measure of what it does to a sum of squares that leaves its range."""
    report = harness.run(harness.FIXTURES / "PA209/bad.py", traced=True, exact=True).report
    assert report is not None
    (found,) = [one for one in report.findings if one.rule == "PA209"]
    assert found.severity.value != "note"
    assert 0 < found.evidence["exact_error"] < 0.0005


def test_nothing_is_known_of_an_operation_that_overflows(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LOW_NORM.replace("bfloat16", "half").replace("x.pow(2)", "(300 * x).pow(2)"))
    report = harness.run(tmp_path / "train.py", traced=True, exact=True).report
    assert report is not None
    norms = [one for one in report.findings if one.rule == "PA403"]
    assert norms
    assert not any(name.startswith("exact_") for one in norms for name in one.evidence)
    assert not any("measured: 0.0 %" in one.message for one in norms)


LOW_NORM = """
import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def main():
    net = nn.Sequential(nn.Linear(16, 16), Norm(), nn.Linear(16, 4)).bfloat16()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(4):
        net(torch.randn(32, 16).bfloat16()).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


main()
"""


def test_gradients_are_measured_before_their_reduction_and_after_it(tmp_path: Path) -> None:
    """The one rank of a group gets back what it gave."""
    exact = exact_of(REDUCED, tmp_path)
    alone = exact_of(REDUCED.replace("torch.distributed.all_reduce(p.grad)", "pass"), tmp_path)
    assert exact.not_followed == {}
    before = next(line for line in exact.budget if line.what == "before reduction")
    true = [line for line in alone.budget if line.what == "gradient"]
    assert before.error == pytest.approx(
        sum(line.absolute**2 for line in true) ** 0.5 / sum(line.size**2 for line in true) ** 0.5
    )
    after = [line for line in exact.budget if line.what == "gradient"]
    assert [line.error for line in after] == pytest.approx([line.error for line in true])
    assert [line.split["reduction"] for line in after] == [0.0] * 4
    assert not any(line.partial for line in exact.budget)


def test_a_collective_whose_ranks_cannot_be_asked_leaves_gradients_unknown(tmp_path: Path) -> None:
    exact = exact_of(REDUCED.replace("(p.grad)", "(p.grad, op=torch.distributed.ReduceOp.PRODUCT)"), tmp_path)
    assert list(exact.not_followed) == ["c10d::allreduce_"]
    assert all(line.partial for line in exact.budget if line.what in ("gradient", "gradient norm", "update", "state"))


REDUCED = """
import torch
from torch import nn

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(net.parameters())
for _ in range(4):
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(16, 8))
    y.float().square().mean().backward()
    for p in net.parameters():
        torch.distributed.all_reduce(p.grad)
    optimizer.step()
    optimizer.zero_grad()
torch.distributed.destroy_process_group()
"""

PAGE = Path(__file__).parents[2] / "docs" / "exact.md"
PLOT = PAGE.with_suffix(".svg")
WHAT_IF = re.compile(r"```console\n\$[^\n]*\n(what if.*?)```", re.DOTALL)
EXAMPLE = re.compile(r"```console\n\$[^\n]*\n(exact step.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


EXAMPLES: list[tuple[str, str, re.Pattern[str], dict[str, Any]]] = [
    ("PA101/bad.py", "exact step", EXAMPLE, {}),
    ("PA606/good.py", "what if", WHAT_IF, {"what_if": ("mxfp8", "float8_e4m3", "nvfp4", "float16")}),
]


def said_of(name: str, begins: str, settings: dict[str, Any]) -> tuple[str, str]:
    """What the program says of a fixture in a terminal, and the plot of its page."""
    script = harness.FIXTURES / name
    report = harness.run(script, traced=True, exact=True, **settings).report
    assert report is not None
    assert report.exact is not None
    text = render(report, "text", width=100).replace(str(script), f"fixtures/{name}")
    return text[text.index(begins) :].split("\n\n")[0], exactpage.plot(report.exact)


def agree(shown: str, said: str) -> None:
    """Words to the letter, and numbers as nearly as kernels of other machines agree."""
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", said), said
    for one, other in zip(NUMBER.findall(shown), NUMBER.findall(said), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.2), said


@pytest.mark.parametrize(("name", "begins", "example", "settings"), EXAMPLES)
def test_an_example_of_the_docs_is_what_the_program_says(
    name: str, begins: str, example: re.Pattern[str], settings: dict[str, Any]
) -> None:
    said, plot = said_of(name, begins, settings)
    found = example.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    agree(" ".join(found[1].split()), " ".join(said.split()))
    if begins == "exact step":
        agree(PLOT.read_text(encoding="utf-8"), plot + "\n")


BLOCKS = """
import torch
from torch import nn

torch.manual_seed(0)
net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16)), "head": nn.Linear(16, 4)})
net = net.bfloat16()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
for number in range(5):
    x = torch.randn(32, 16).bfloat16()
    y = net["head"](net["body"](x))
    y.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def scoped(tmp_path: Path, **settings: Any) -> Any:
    script = tmp_path / "train.py"
    script.write_text(BLOCKS, encoding="utf-8")
    report = harness.run(script, traced=True, exact=True, **settings).report
    assert report is not None
    assert report.exact is not None
    return report.exact


def test_only_the_modules_that_are_asked_for_are_followed(tmp_path: Path) -> None:
    """What comes into them counts as exact: the head's gradient has lost what its own two matmuls and a sum lose."""
    whole, head = scoped(tmp_path), scoped(tmp_path, exact_modules=("head",))
    assert head.scope.modules == ["head"]
    assert {row.module for row in head.operations if row.phase in ("forward", "backward") and row.module} == {"head"}
    assert {line.name for line in head.budget if line.what in ("gradient", "update")} == {"head.weight", "head.bias"}
    gradients = {line.name: line.error for line in whole.budget if line.what == "gradient"}
    for line in head.budget:
        if line.what == "gradient":
            assert 0 < line.error < gradients[line.name] * 1.5
    assert next(line.error for line in head.budget if line.name == "head.weight" and line.what == "gradient") < 0.004
    nested = scoped(tmp_path, exact_modules=("bo*",))
    names = {line.name for line in nested.budget if line.what == "gradient"}
    assert names == {"body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"}


def test_a_pattern_that_no_module_fits_is_told(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(BLOCKS, encoding="utf-8")
    report = harness.run(script, traced=True, exact=True, exact_modules=("heads",)).report
    assert report is not None
    said = "--exact-module heads: no such module ran; there are body.0, body.1, body.2, head"
    assert said in report.coverage.notes


def test_what_does_not_fit_into_memory_is_left_out_the_best_first(tmp_path: Path) -> None:
    whole = scoped(tmp_path)
    plenty = scoped(tmp_path, exact_memory=1 << 30)
    assert (whole.scope, plenty.scope) == (None, None)
    assert plenty.step == whole.step + 1
    little = scoped(tmp_path, exact_memory=whole.companions // 2)
    assert little.scope.left_out > 0
    assert 0 < little.companions <= little.scope.limit == whole.companions // 2
    assert set(little.scope.modules) == {row.module for row in little.operations if row.module}
    none = scoped(tmp_path, exact_memory=8)
    assert (none.scope.modules, none.budget) == ([], [])


def test_a_run_without_a_whole_step_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    """One step after the first backward that is seen: the forward pass of it was missed."""
    script = tmp_path / "train.py"
    script.write_text(BY_HAND.replace("range(6)", "range(2)"), encoding="utf-8")
    report = harness.run(script, traced=True, exact=True).report
    assert report is not None
    assert report.exact is None
    assert [note for note in report.coverage.notes if note.startswith("--exact")] == [
        "--exact: no step was followed from its forward pass to its end; let it take more steps, or say --steps 3"
    ]


def write_the_plot() -> None:
    """The plot of docs/exact.md as it is drawn now; `python tests/captures.py exact` writes the text beside it."""
    _, plot = said_of("PA101/bad.py", "exact step", {})
    PLOT.write_text(plot + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_the_plot()
