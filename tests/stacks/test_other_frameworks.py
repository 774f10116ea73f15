"""Megatron-Core, Keras on torch, Ignite and skorch, each in its real package on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from precaudit.model.wire import Report, Severity

pytestmark = pytest.mark.slow

MEGATRON = Path(__file__).parent / "scripts" / "gpt_of_megatron.py"
X, Y = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4


def loud(report: Report) -> dict[str, Any]:
    return {f.rule: f for f in report.findings if f.severity is not Severity.NOTE}


def held(report: Report, role: str) -> set[str]:
    return {row.dtype for row in report.roles if row.role == role and row.dtype}


def net(dtype: torch.dtype) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    return torch.nn.Sequential(*layers).to(dtype)


def megatron(folder: Path, *options: str) -> tuple[Report, str]:
    """The report of the traced script, and what the script itself printed."""
    kept = folder / "report.json"
    words = ["trace", "--keep-going", "--output", str(kept), str(MEGATRON), *options]
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert kept.exists(), done.stderr
    return Report.model_validate_json(kept.read_text(encoding="utf-8")), done.stdout


@pytest.mark.parametrize("options", [(), ("--sharded",)])
def test_megatron_sums_gradients_in_the_dtype_of_the_parameters_by_default(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    report, printed = megatron(tmp_path, *options)
    found = loud(report)
    assert set(found) == {"PA208"}
    assert "Megatron .main_grad" in found["PA208"].message
    assert 0 < found["PA208"].evidence["accumulation_loss"] < 0.02
    assert "grad_reduce_in_fp32=True" in found["PA208"].fix
    assert held(report, "master_weight") == {"float32"}
    assert held(report, "optimizer_state") == {"float32"}
    assert held(report, "gradient_reduction") == {"bfloat16"}
    assert report.coverage.notes == []
    plain = subprocess.run(
        [sys.executable, str(MEGATRON), *options], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert printed == plain.stdout


def test_megatron_that_reduces_in_float32_is_clean(tmp_path: Path) -> None:
    report, _ = megatron(tmp_path, "--in-float32")
    assert loud(report) == {}
    assert held(report, "gradient_accumulation") == held(report, "gradient_reduction") == {"float32"}


def test_megatron_s_scale_of_float16_is_dynamic_unless_it_is_given(tmp_path: Path) -> None:
    options = ("--float16", "--in-float32")
    report, _ = megatron(tmp_path, *options)
    assert loud(report) == {}
    assert held(report, "loss_scale") == held(report, "master_weight") == {"float32"}
    report, printed = megatron(tmp_path, *options, "--fixed-scale")
    (found,) = loud(report).values()
    assert found.rule == "PA804"
    assert found.message.endswith("loss_scale=256 is never adapted; None is dynamic")
    assert "OptimizerConfig(" in MEGATRON.read_text(encoding="utf-8").splitlines()[found.line - 1]
    plain = subprocess.run(
        [sys.executable, str(MEGATRON), *options, "--fixed-scale"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert printed == plain.stdout


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras

    before = keras.config.dtype_policy()
    yield keras
    keras.config.set_dtype_policy(before)


def of_keras(keras: Any, policy: str) -> Report:
    keras.config.set_dtype_policy(policy)
    layers = keras.layers

    def train() -> None:
        model = keras.Sequential(
            [layers.Input((16,)), layers.Dense(32), layers.LayerNormalization(), layers.Dense(4)], name="net"
        )
        model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(X.numpy(), Y.numpy(), batch_size=8, epochs=1, verbose=0)

    return harness.trace_call(train)


def test_keras_s_bfloat16_policy_trains_nothing_at_all(keras: Any) -> None:
    """beta_2 to the first power is 1 in bfloat16, and the step that is multiplied by 1 - 1 is 0."""
    found = loud(of_keras(keras, "bfloat16"))
    assert set(found) == {"PA101", "PA301"}
    assert found["PA101"].evidence["updates_lost"] == 1
    assert found["PA101"].cause.text == 'the dtype policy "bfloat16" makes variables bfloat16'
    assert 'set_dtype_policy("mixed_bfloat16")' in found["PA101"].fix
    assert {part.name for part in found["PA101"].parts} >= {"net/dense/kernel"}


def test_keras_s_mixed_policy_is_clean_and_computes_as_it_says(keras: Any) -> None:
    report = of_keras(keras, "mixed_bfloat16")
    assert loud(report) == {}
    assert held(report, "master_weight") == held(report, "optimizer_state") == {"float32"}
    assert held(report, "matmul_compute") == {"bfloat16"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ignite_s_trainer(dtype: torch.dtype) -> None:
    from ignite.engine import create_supervised_trainer

    model = net(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.cross_entropy)
    batches = [(X[at : at + 8].to(dtype), Y[at : at + 8]) for at in range(0, 32, 8)]
    report = harness.trace_call(lambda: trainer.run(batches, max_epochs=1))
    found = loud(report)
    assert set(found) == ({"PA101", "PA301", "PA401", "PA404"} if dtype is torch.bfloat16 else set())
    assert all('amp_mode="amp"' in found[rule].fix for rule in {"PA101", "PA301"} & set(found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_skorch_s_classifier(dtype: torch.dtype) -> None:
    from skorch import NeuralNetClassifier

    def train() -> None:
        net_of_ours = NeuralNetClassifier(
            net(dtype), criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, max_epochs=1, batch_size=8,
            train_split=None, verbose=0,
        )  # fmt: skip
        net_of_ours.fit(X.to(dtype), Y)

    report = harness.trace_call(train)
    assert set(loud(report)) == ({"PA101", "PA301", "PA401", "PA404"} if dtype is torch.bfloat16 else set())
    assert "skorch" in report.coverage.setup["frameworks"]
