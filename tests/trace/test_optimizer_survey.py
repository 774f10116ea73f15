"""What third-party optimizers keep: the report's rows equal plain inspection of everything an optimizer object holds.

The oracle knows nothing of any optimizer: it follows every reference from the object, through dicts, lists, attributes
and the parts of wrapper tensors, and leaves out the model's own tensors. The trace changes no bit of any of the runs.
"""

from __future__ import annotations

import types
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch
from test_oracle import name_of, reported, traced
from torch import nn

pytestmark = pytest.mark.slow

NOT_LOOKED_INTO = (str, int, float, bool, type(None), types.FunctionType, types.MethodType, types.ModuleType, type)
CODES = (torch.uint8, torch.int8, torch.float8_e4m3fn)


def kept(optimizer: Any, model: nn.Module) -> Counter[str]:
    """dtype -> tensors that can be reached from an optimizer; scalars and the model's own tensors are left out.

    8-bit codes count where smaller floating tensors, their scales, lie in the same dict or wrapper; the scales do not.
    """
    own = {id(t) for p in model.parameters() for t in (p, p.grad)}
    seen: dict[int, Any] = {}
    found: list[torch.Tensor] = []

    def count(box: list[torch.Tensor]) -> None:
        codes = [t for t in box if t.dtype in CODES and t.numel() >= 64]
        scales = [t for t in box if codes and t.is_floating_point() and 1 < t.numel() < codes[0].numel()]
        for t in box:
            a_code = any(t is code for code in codes) and bool(scales)
            a_moment = t.is_floating_point() and t.numel() != 1 and not any(t is s for s in scales)
            if a_code or a_moment:
                found.append(t)

    def follow(value: Any) -> None:
        if isinstance(value, (*NOT_LOOKED_INTO, nn.Module)) or id(value) in seen or id(value) in own:
            return
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            wrapper = type(value) not in (torch.Tensor, nn.Parameter)
            count([getattr(value, name) for name in value.__tensor_flatten__()[0]] if wrapper else [value])
            return
        if isinstance(value, Mapping):
            items = list(value.values())
        elif isinstance(value, list | tuple | set | deque):
            items = list(value)
        else:
            items = list(vars(value).values()) if hasattr(value, "__dict__") else []
        plain = [t for t in items if type(t) is torch.Tensor and id(t) not in own and id(t) not in seen]
        seen.update((id(t), t) for t in plain)
        count(plain)
        for item in items:
            follow(item)

    follow(optimizer)
    return Counter(name_of(t.dtype) for t in found)


def net(dtype: torch.dtype, width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 4)).to(dtype)


Build = Callable[[nn.Sequential], Any]


def of_parameters(kind: Any, **arguments: Any) -> Build:
    return lambda model: kind(model.parameters(), **arguments)


def library() -> dict[str, Build]:
    """Every optimizer of pytorch-optimizer that can train three small layers on one CPU process."""
    import pytorch_optimizer

    # These want one process group, a loss of their own kind, matrices only, or torch.geqrf in bfloat16.
    other_needs = {"distributedmuon", "demo", "alig", "bsam", "adago", "spectralsphere", "lorarite"}
    arguments: dict[str, dict[str, Any]] = {
        "ranger21": {"num_iterations": 100},
        "lbfgs": {"max_iter": 2},
        "soap": {"precondition_frequency": 1},
        "flashadamw": {"master_byte_width": 3},
    }
    found: dict[str, Build] = {}
    for name in pytorch_optimizer.get_supported_optimizers():
        kind = pytorch_optimizer.load_optimizer(name)
        if name in other_needs:
            continue
        if name in ("lomo", "adalomo", "adammini"):
            found[name] = kind
        elif "muon" in name:
            found[name] = lambda model, kind=kind: kind(
                [
                    {"params": [p for p in model.parameters() if p.ndim == 2], "use_muon": True},
                    {"params": [p for p in model.parameters() if p.ndim < 2], "use_muon": False},
                ]
            )
        else:
            found[name] = of_parameters(kind, **arguments.get(name, {}))
    found["lookahead"] = lambda model: pytorch_optimizer.Lookahead(torch.optim.AdamW(model.parameters()))
    found["sam"] = of_parameters(pytorch_optimizer.SAM, base_optimizer=torch.optim.AdamW)
    return found


def others() -> dict[str, Build]:
    import galore_torch
    import lion_pytorch
    import schedulefree
    from transformers.optimization import Adafactor

    def galore(model: nn.Sequential) -> Any:
        low_rank = {"rank": 4, "update_proj_gap": 10, "scale": 0.25, "proj_type": "std"}
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        return galore_torch.GaLoreAdamW([{"params": matrices, **low_rank}, {"params": rest}], lr=1e-3)

    return {
        "lion-pytorch": of_parameters(lion_pytorch.Lion, lr=1e-4),
        "schedulefree AdamW": of_parameters(schedulefree.AdamWScheduleFree),
        "schedulefree SGD": of_parameters(schedulefree.SGDScheduleFree, lr=0.1),
        "schedulefree RAdam": of_parameters(schedulefree.RAdamScheduleFree),
        "galore-torch": galore,
        "transformers Adafactor": of_parameters(Adafactor),
    }


def optimizers() -> dict[str, Build]:
    return library() | others()


def train(build: Build, dtype: torch.dtype, look: Callable[[Any, nn.Module], None] | None = None) -> nn.Module:
    """Four steps; `look` sees the optimizer after the third, where the traced steps end."""
    numpy.random.seed(0)
    model = net(dtype)
    optimizer = build(model)
    kind = type(optimizer).__name__
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(4):
        x = torch.randn(8, 16, dtype=dtype)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).float().square().mean()  # noqa: B023  (called before the next turn of the loop)
            loss.backward(create_graph=kind in ("AdaHessian", "SophiaH"))
            return loss

        if "LOMO" in kind:
            optimizer.fused_backward(model(x).float().square().mean(), lr=1e-3)
        elif kind in ("LBFGS", "SAM"):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        if step == 2 and look is not None:
            look(optimizer, model)
    return model


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.parameters()]


STATE = ("optimizer_state", "master_weight")


def survey(name: str, build: Build, dtype: torch.dtype) -> list[str]:
    """What the trace and inspection disagree on; empty where they agree and the runs are bit-identical."""
    inspected: Counter[str] = Counter()
    models = []
    torch.set_num_threads(1)
    plain = train(build, dtype)
    report = traced(lambda: models.append(train(build, dtype, lambda made, model: inspected.update(kept(made, model)))))
    told = Counter(reported(report, "optimizer_state")) + Counter(reported(report, "master_weight"))
    weights = Counter({name_of(dtype): len(list(plain.parameters()))})
    wrong = []
    # Parameters are counted from the first update that was seen; some optimizers warm up longer than the window.
    if told not in (inspected + weights, inspected) and name != "galore-torch":
        rows = [f"{fact['role']}: {fact['count']} {fact['detail']}" for fact in report.facts if fact["role"] in STATE]
        wrong.append(f"reported {dict(told)}, inspected {dict(inspected)} beside {dict(weights)}: {rows}")
    if bits(plain) != bits(models[0]):
        wrong.append("the traced run ended with other weights")
    wrong += [note for note in report.coverage.notes if "could not follow" in note]
    low = {"bfloat16", "float16"} & set(reported(report, "optimizer_state"))
    if bool(low) != ("PA301" in {f.rule for f in report.findings}):
        wrong.append(f"state in {low}, findings {[f.rule for f in report.findings]}")
    return [f"{name} {name_of(dtype)}: {what}" for what in wrong]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_of_every_optimizer_is_found_where_it_hides(dtype: str) -> None:
    found = optimizers()
    assert len(found) >= 45
    wrong = [line for name, build in found.items() for line in survey(name, build, getattr(torch, dtype))]
    assert not wrong, "\n".join(wrong)


def row(build: Build, dtype: torch.dtype, role: str) -> dict[str, tuple[int, str, list[str]]]:
    """dtype -> (tensors, verdict, why it is allowed)."""
    report = traced(lambda: train(build, dtype))
    return {
        row.dtype: (row.tensors, row.verdict, row.because) for row in report.roles if row.role == role and row.dtype
    }


def test_adafactor_keeps_a_bfloat16_average_even_for_a_float32_model() -> None:
    build = library()["adafactor"]
    assert row(build, torch.float32, "optimizer_state") == {
        "bfloat16": (6, "violation", []),
        "float32": (8, "ok", []),
    }


@pytest.mark.parametrize("name", ["adammini", "fadam", "dash"])
def test_float32_state_of_bfloat16_weights_is_right_and_the_weights_are_not(name: str) -> None:
    build = library()[name]
    assert set(row(build, torch.bfloat16, "optimizer_state")) == {"float32"}
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (6, "violation", [])}


def test_weights_that_are_computed_in_float32_and_rounded_back_have_no_master() -> None:
    build = others()["transformers Adafactor"]
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (6, "violation", [])}
    assert set(row(build, torch.bfloat16, "optimizer_state")) == {"float32"}


@pytest.mark.parametrize("name", ["schedulefree AdamW", "schedulefree SGD", "schedulefree RAdam"])
def test_the_true_weight_sequence_of_schedulefree_is_a_weight(name: str) -> None:
    build = others()[name]
    assert row(build, torch.float32, "master_weight") == {"float32": (12, "ok", [])}
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (12, "violation", [])}


def test_kahan_summation_of_a_library_excuses_the_weights_and_not_the_moments() -> None:
    build = library()["stableadamw"]
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (6, "allowed", ["kahan"])}
    assert row(build, torch.bfloat16, "optimizer_state")["bfloat16"][1] == "violation"


def test_bits_that_bfloat16_cannot_hold_are_kept_beside_the_weights() -> None:
    build = library()["flashadamw"]
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (6, "allowed", ["kahan"])}
    assert {dtype: found[1:] for dtype, found in row(build, torch.float32, "optimizer_state").items()} == {
        "int8": ("allowed", ["block-wise"]),
        "uint8": ("allowed", ["block-wise"]),
    }


def test_stochastic_rounding_of_a_library_is_seen_in_what_it_does() -> None:
    build = library()["rose"]
    assert row(build, torch.bfloat16, "master_weight") == {"bfloat16": (6, "allowed", ["stochastic-rounding"])}
    assert row(build, torch.float32, "master_weight") == {"float32": (6, "ok", [])}


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_optimizers_that_live_in_backward_take_steps_too(name: str) -> None:
    report = traced(lambda: train(library()[name], torch.bfloat16))
    assert report.coverage.steps == 2
    assert reported(report, "master_weight") == {"bfloat16": 6}
    assert "PA101" in {f.rule for f in report.findings}
