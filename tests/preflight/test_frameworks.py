"""Frameworks that choose by what torch.cuda says, unmodified under `precaudit preflight`, with real values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"
F32, F16, BF16 = {"float32"}, {"float16"}, {"bfloat16"}
AMP = {"master_weight": F32, "optimizer_state": F32, "loss": F32}
RIGHT: dict[tuple[str, ...], dict[str, set[str]]] = {
    ("hf_trainer.py", "bf16"): {**AMP, "matmul_compute": BF16, "forward_weight": F32 | BF16},
    ("hf_trainer.py", "fp16"): {**AMP, "loss_scale": F32, "matmul_compute": F16, "forward_weight": F32 | F16},
    ("hf_trainer.py", "bf16", "lora"): {"adapter_parameter": F32, "optimizer_state": F32, "matmul_compute": BF16},
    ("accelerated.py", "bf16"): {**AMP, "matmul_compute": BF16, "norm_computation": F32},
    ("accelerated.py", "fp16"): {**AMP, "loss_scale": F32, "matmul_compute": F16, "norm_computation": F32},
    ("lit.py", "bf16-mixed"): {**AMP, "matmul_compute": BF16, "norm_computation": F32},
    ("lit.py", "16-mixed"): {**AMP, "loss_scale": F32, "matmul_compute": F16, "norm_computation": F32},
    **{
        ("zero.py", "bf16", stage): {**AMP, "matmul_compute": BF16, "forward_weight": BF16, "gradient_reduction": BF16}
        for stage in "123"
    },
    **{
        ("zero.py", "fp16", stage): {**AMP, "matmul_compute": F16, "forward_weight": F16, "gradient_reduction": F32}
        for stage in "123"
    },
    ("qlora.py",): {"adapter_parameter": F32, "optimizer_state": F32, "quantized_storage": {"nf4"}},
}
WRONG: dict[tuple[str, ...], set[str]] = {
    ("hf_trainer.py", "wrong"): {"PA101", "PA301"},
    ("hf_trainer.py", "wrong", "lora"): {"PA301", "PA811"},
    ("accelerated.py", "bf16", "wrong"): {"PA101", "PA301"},
    ("lit.py", "bf16-true"): {"PA101", "PA301"},
    ("zero.py", "bf16", "2", "wrong"): {"PA101", "PA301", "PA801"},
    ("qlora.py", "wrong"): {"PA301"},
}


def preflight(folder: Path, port: int, script: str, *argv: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON report of one script."""
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | (single if script == "zero.py" else {})  # without them DeepSpeed looks for MPI
    command = [sys.executable, "-m", "precaudit", "preflight", "--output", "report.json", *options]
    words = [*command, str(SCRIPTS / script), *argv]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["exit_code"] == 0, done.stderr[-3000:]
    assert report["preflight"]["device"] == "h100"
    assert report["coverage"]["setup"]["device"] == "cuda"
    return report


def held(report: dict[str, Any]) -> dict[str, set[str]]:
    """Role -> the dtypes it held."""
    found: dict[str, set[str]] = {}
    for row in report["roles"]:
        if row["dtype"] is not None:
            found.setdefault(row["role"], set()).add(row["dtype"])
    return found


def loud(report: dict[str, Any]) -> set[str]:
    return {finding["rule"] for finding in report["findings"] if finding["severity"] != "note"}


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_a_right_recipe_holds_cudas_dtypes_and_no_rule_speaks(
    words: tuple[str, ...], tmp_path: Path, free_port: int
) -> None:
    report = preflight(tmp_path, free_port, *words)
    assert {role: held(report).get(role) for role in RIGHT[words]} == RIGHT[words]
    assert loud(report) == set()


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_its_wrong_twin_is_told_by_the_rules(words: tuple[str, ...], tmp_path: Path, free_port: int) -> None:
    assert WRONG[words] <= loud(preflight(tmp_path, free_port, *words))


@pytest.mark.parametrize(
    "words", [("zero.py", "bf16", "1"), ("zero.py", "fp16", "2"), ("zero.py", "bf16", "3")], ids=" ".join
)
def test_zero_holds_the_same_without_numbers(words: tuple[str, ...], tmp_path: Path, free_port: int) -> None:
    report = preflight(tmp_path, free_port, *words, options=["--fake"])
    assert {role: held(report).get(role) for role in RIGHT[words]} == RIGHT[words]
    assert loud(report) == set()


def test_two_processes_of_a_launcher_sum_gradients_as_nccl_would(tmp_path: Path, free_port: int) -> None:
    launcher = ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port)]
    for hook, reduced in (("mean", F32), ("hook", F16)):
        report = preflight(tmp_path, free_port, "ddp.py", hook, options=launcher)
        table = held(report)
        assert (table["master_weight"], table["loss_scale"], table["gradient_reduction"]) == (F32, F32, reduced)
        assert loud(report) == ({"PA501"} if hook == "hook" else set())


def test_llama_8b_holds_the_bytes_of_the_arithmetic_without_memory(tmp_path: Path, free_port: int) -> None:
    """8,030,261,248 parameters, as its makers count them. `benchmarks/preflight.py` has the larger ones."""
    report = preflight(tmp_path, free_port, "shapes.py", "llama-8b", options=["--fake"])
    found = {(row["role"], row["dtype"]): row["bytes"] for row in report["roles"]}
    assert found["master_weight", "float32"] == found["gradient", "float32"] == 4 * 8_030_261_248
    assert found["optimizer_state", "float32"] == 8 * 8_030_261_248
    assert loud(report) == set()
