"""`precaudit whatif`: formats against torch's own casts and by hand, effects against a step that really rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from exact_programs import PROGRAMS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.cli import run
from precaudit.model.exact import Effect, MatmulRow, RoleRow, WhatIf
from precaudit.report import what_if
from precaudit.runtime import session as sessions
from precaudit.runtime.exact.forks import MATMULS
from precaudit.runtime.exact.formats import E2M1, E4M3, E5M2, FORMATS, Rounding
from precaudit.runtime.exact.step import ExactStep

NEAREST = Rounding()


# ---- formats


def spread(count: int = 20_000) -> Tensor:
    """float32 numbers of many sizes, subnormal ones of every format and ties among them, in float64."""
    torch.manual_seed(0)
    many = torch.randn(count) * torch.exp2(torch.randint(-30, 20, (count,)).float())
    ties = torch.arange(-64, 64) / 32
    return torch.cat([many, ties, ties * 2.0**-9, ties * 2.0**-16, torch.zeros(1)]).double()


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_sixteen_bits_are_torchs_cast_inf_included(name: str, dtype: torch.dtype) -> None:
    wide = torch.cat([spread(), torch.tensor([65504.0, 65519.9, 65520.0, -1e38, 3.4e38]).double()])
    assert torch.equal(NEAREST.into(name, wide).values, wide.to(dtype).double())


@pytest.mark.parametrize(("element", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)])
def test_eight_bits_are_torchs_cast(element: Any, dtype: torch.dtype) -> None:
    wide = spread().clamp(-element.largest, element.largest)
    assert torch.equal(NEAREST.element(wide, element), wide.to(dtype).double())


def test_e2m1_rounds_ties_to_the_even_one_of_its_fifteen_numbers() -> None:
    wide = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 9.0, -0.3, 0.0]).double()
    assert NEAREST.element(wide, E2M1).tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 6, -0.5, 0]
    made = set(NEAREST.element(torch.linspace(-7, 7, 5000).double(), E2M1).tolist())
    assert made == {sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)}


def test_a_block_of_mxfp4_by_hand() -> None:
    """Its largest is 5 = 1.25 * 2**2: the scale is 2**(2 - 2) = 1. That of the next is 28: 2**(4 - 2) = 4."""
    block = torch.zeros(64).double()
    block[:4] = torch.tensor([5.0, 0.2, -1.3, 0.8])
    block[32:35] = torch.tensor([28.0, 1.0, 3.0])
    made = NEAREST.into("mxfp4", block)
    assert made.values[:4].tolist() == [4, 0, -1.5, 1]
    assert made.values[32:35].tolist() == [24, 0, 4]
    assert (int(made.flushed), int(made.saturated)) == (2, 1)


def test_a_block_of_mxfp8_saturates_by_its_scale_of_whole_powers() -> None:
    block = torch.full((32,), 1.9).double()
    assert NEAREST.into("mxfp8", block).values.tolist() == [448 / 256] * 32
    assert int(NEAREST.into("mxfp8", block).saturated) == 32


def test_a_tensor_of_nvfp4_by_hand() -> None:
    """The tensor's scale is 24 / (448 * 6) = 1 / 112; the second block's 2.4 / 6 * 112 = 44.8 becomes 44 of e4m3."""
    tensor = torch.zeros(32).double()
    tensor[:2] = torch.tensor([24.0, 10.0])
    tensor[16:18] = torch.tensor([2.4, 0.09])
    made = NEAREST.into("nvfp4", tensor)
    assert made.values[:2].tolist() == pytest.approx([24, 8])  # 10 / 4 = 2.5 is 2
    assert made.values[16:18].tolist() == pytest.approx([6 * 44 / 112, 0.0])
    assert int(made.flushed) == 1


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4"])
def test_mx_blocks_are_what_the_specification_computes(name: str) -> None:
    torch.manual_seed(1)
    wide = (torch.randn(40, 96) * torch.exp2(torch.randint(-8, 8, (40, 1)).float())).double()
    element, largest = FORMATS[name].element, {"mxfp8": 8, "mxfp4": 2}[name]
    rows = wide.view(-1, 32)
    scale = torch.exp2(torch.floor(torch.log2(rows.abs().amax(1, keepdim=True))) - largest)
    grid = sorted(
        set(NEAREST.element(torch.arange(-element.largest, element.largest + 1, 1 / 512).double(), element).tolist())
    )
    numbers = torch.tensor(grid).double()
    nearest = (rows / scale).clamp(-element.largest, element.largest)
    expected = torch.stack([numbers[(numbers - one.unsqueeze(-1)).abs().argmin(-1)] for one in nearest]) * scale
    assert torch.equal(NEAREST.into(name, wide).values, expected.view_as(wide))
    assert torch.equal(NEAREST.into(name, wide.T.contiguous(), 0).values, expected.view_as(wide).T)


@pytest.mark.parametrize("name", FORMATS)
def test_random_rounding_is_right_on_average_and_gives_neighbours(name: str) -> None:
    torch.manual_seed(2)
    wide = torch.rand(32).double() + 0.5
    before = torch.get_rng_state()
    rounding = Rounding(stochastic=True)
    made = torch.stack([rounding.into(name, wide).values for _ in range(4000)])
    spacing = made.amax(0) - made.amin(0)
    kept = NEAREST.into(name, wide).saturated == 0
    assert torch.equal(torch.get_rng_state(), before)
    if kept:
        assert ((made.mean(0) - wide).abs() <= 0.06 * spacing + 1e-12).all()


# ---- effects


class Running:
    """Which of a model's layers runs, forward or backward."""

    def __init__(self, model: nn.Module) -> None:
        self.layer = ""
        for name, layer in model.named_children():
            layer.register_forward_pre_hook(partial(self._begins, name))
            layer.register_full_backward_pre_hook(partial(self._begins, name))

    def _begins(self, name: str, module: nn.Module, given: Any) -> None:
        self.layer = name


class Rounded(TorchDispatchMode):
    """Rounds the operands of every matmul, or of one layer's: the step as it would really be."""

    def __init__(self, name: str, running: Running | None, layer: str | None) -> None:
        super().__init__()
        self.name, self.running, self.layer = name, running, layer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = MATMULS.get(func._schema.name.partition("::")[2])
        if places is not None and self.running is not None and self.layer in (None, self.running.layer):
            args = list(args)
            for at, dim in zip(places, (-1, -2), strict=True):
                args[at] = NEAREST.into(self.name, args[at], dim).values
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 40), nn.LayerNorm(40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.norm(self.first(x))))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, 12, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def train(steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for number in range(steps):
        x, y = batch(number)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in model.parameters())]


def measured(formats: tuple[str, ...]) -> tuple[WhatIf, list[Tensor]]:
    with harness.unchanged_world(), one_thread():
        session = sessions.start({**harness.SETTINGS, "exact": True, "what_if": formats, "cwd": "."})
        try:
            results = train(3)
            content = session.parts.get(ExactStep).content(0) or {}
            notes = list(session.guard.notes)
        finally:
            session.remove()
    assert notes == []
    return WhatIf(**content["what_if"]), results


def true_effects(name: str, layer: str | None) -> tuple[float, float]:
    """Loss and gradients of step 2 in float64, with and without rounding."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    model.double()
    running = Running(model)
    x, y = batch(1)
    found = []
    for rounds in (False, True):
        optimizer.zero_grad()
        with Rounded(name, running if rounds else None, layer):
            loss = F.cross_entropy(model(x.double()), y)
            loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (loss, gradients), (low, rounded) = found
    return float((low - loss).abs() / loss), float((rounded - gradients).norm() / gradients.norm())


@pytest.mark.parametrize("name", FORMATS)
def test_effect_on_loss_and_gradients_is_that_of_a_step_that_rounds(name: str) -> None:
    found, _ = measured((name,))
    with one_thread():
        loss, gradients = true_effects(name, None)
        alone = {layer: true_effects(name, layer) for layer in ("first", "last")}
    assert found.formats[0].loss == pytest.approx(loss, rel=1e-4, abs=1e-9)
    assert found.formats[0].gradients == pytest.approx(gradients, rel=1e-4)
    assert {effect.layer for effect in found.layers} == set(alone)
    for effect in found.layers:
        assert effect.layer is not None
        assert (effect.loss, effect.gradients) == pytest.approx(alone[effect.layer], rel=1e-4, abs=1e-9)
    assert found.layers == sorted(found.layers, key=lambda effect: -(effect.gradients or 0.0))


def test_the_program_computes_what_it_computes_without() -> None:
    with one_thread():
        plain = train(3)
    _, traced = measured(("mxfp4", "float8_e5m2"))
    assert all(torch.equal(one, other) for one, other in zip(plain, traced, strict=True))


def test_operands_and_roles_are_what_torchs_casts_make_of_them() -> None:
    found, _ = measured(("bfloat16",))
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, given: Any) -> None:
        seen.append((given[0].detach(), module.weight.detach().clone()))  # type: ignore[union-attr, operator]

    torch.manual_seed(0)
    with one_thread():
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model.last.register_forward_pre_hook(keep)
        for number in range(2):
            x, y = batch(number)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            held = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
    row = next(r for r in found.matmuls if (r.layer, r.phase) == ("last", "forward"))
    x, weight = seen[1]
    assert row.error == pytest.approx(max(off(x), off(weight)), rel=1e-5)
    product = x.double() @ weight.double().T
    low = x.bfloat16().double() @ weight.bfloat16().double().T
    assert row.result == pytest.approx(float((low - product).norm() / product.norm()), rel=1e-5)
    rows = {one.role: one for one in found.roles}
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    before = torch.cat([p.flatten() for p in held])
    lost = float((whole.bfloat16().double() - whole).norm() / (whole.double() - before).norm())
    assert rows["master_weight"].of_the_step == pytest.approx(lost, rel=1e-5)
    assert (rows["master_weight"].bytes, rows["master_weight"].saves) == (4 * whole.numel(), 2 * whole.numel())
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert rows["gradient"].error == pytest.approx(off(gradients), rel=1e-5)
    assert rows["gradient"].of_the_step is None


def off(tensor: Tensor) -> float:
    return float((tensor.bfloat16().double() - tensor.double()).norm() / tensor.double().norm())


# ---- words and the command


def test_ten_lines_say_it() -> None:
    moved = {"head": 0.2, "a": 0.02, "b": 0.01}
    gradient = RoleRow(role="gradient", dtype="float32", bytes=4000, format="bfloat16", saves=2000, error=0.0017)
    found = WhatIf(
        formats=[Effect(format="mxfp4", loss=0.01, gradients=0.3), Effect(format="float16", gradients=0.1)],
        layers=[Effect(format="mxfp4", layer=name, gradients=by) for name, by in moved.items()],
        matmuls=[
            MatmulRow(layer="a", phase="forward", format="mxfp4", times=2, error=0.1, flushed=0.05, saturated=0.02)
        ],
        roles=[gradient, gradient.model_copy(update={"role": "master_weight", "of_the_step": 0.5})],
    )
    assert [tuple(line) for line in what_if.lines(found)] == [
        ("mxfp4", "loss off by 1 %, gradients by 30 %; operands by up to 10 %, 5 % become zero, 2 % saturate"),
        ("float16", "loss off by more than can be said: not finite, gradients by 10 %; no matmul was met"),
        ("layers", "mxfp4 in one alone moves the gradients by: head 20 %, a 2 %, b 1 %; keep high: head"),
        ("could be low", "gradient in bfloat16 (off by 0.17 %) would save 2.00 kB"),
    ]


def test_an_unknown_format_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["whatif", "--format", "float8_e4m4", "train.py"]) == 2
    assert "'float8_e4m4' is not a format; did you mean 'float8_e4m3'?" in capsys.readouterr().err


def test_the_command_reports_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text((harness.FIXTURES / "PA606" / "good.py").read_text(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(["whatif", "--format", "mxfp8,bfloat16", "train.py"]) == 0
    said = capfd.readouterr().err
    assert "what if     step 2 beside itself with the operands of all matmuls rounded" in said
    assert "  mxfp8             loss off by " in said
    assert "  layers            mxfp8 in one alone moves the gradients by: " in said


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_all_kinds_run_in_a_format_and_undisturbed(name: str) -> None:
    """Without a fault; and float16 moves the gradients less than a format with fewer bits of both kinds."""
    torch.manual_seed(0)
    plain = PROGRAMS[name]()
    with one_thread():
        for number in range(3):
            plain.step(number)
    with harness.unchanged_world(), one_thread():
        formats = ("nvfp4", "float16")
        session = sessions.start({**harness.SETTINGS, "exact": True, "what_if": formats, "cwd": "."})
        try:
            torch.manual_seed(0)
            traced = PROGRAMS[name]()
            for number in range(3):
                traced.step(number)
            content = session.parts.get(ExactStep).content(0) or {}
            notes = list(session.guard.notes)
        finally:
            session.remove()
    assert notes == []
    assert all(torch.equal(one, other) for one, other in zip(plain.trained, traced.trained, strict=True))
    low, high = WhatIf(**content["what_if"]).formats
    if any(row["format"] == "nvfp4" for row in content["what_if"]["matmuls"]) and high.gradients:
        assert low.gradients is not None
        assert 0 < high.gradients < low.gradients
