"""Training scripts for a GPU, unmodified: which role holds which dtype, and which rules speak."""

from __future__ import annotations

from collections.abc import Callable

import harness
import pytest

from precaudit.model.wire import Report

F32, F16, BF16 = {"float32"}, {"float16"}, {"bfloat16"}
AMP = {"master_weight": F32, "optimizer_state": F32, "loss": F32, "gradient": F32}
"""What the textbook wants of every recipe with autocast."""


def held(report: Report) -> dict[str, set[str]]:
    """Role -> the dtypes it held."""
    found: dict[str, set[str]] = {}
    for row in report.roles:
        if row.dtype is not None:
            found.setdefault(row.role, set()).add(row.dtype)
    return found


RIGHT = {
    ("imagenet.py",): {
        **AMP, "loss_scale": F32, "matmul_compute": F16, "forward_weight": F32 | F16, "norm_running_statistics": F32,
    },
    ("gpt.py", "bfloat16"): {**AMP, "matmul_compute": BF16, "forward_weight": F32 | BF16, "norm_computation": F32},
    ("gpt.py", "float16"): {
        **AMP, "loss_scale": F32, "matmul_compute": F16, "forward_weight": F32 | F16, "norm_computation": F32,
    },
    ("dcgan.py",): {**AMP, "matmul_compute": BF16, "forward_weight": F32 | BF16, "norm_running_statistics": F32},
    ("ddp.py",): {**AMP, "loss_scale": F32, "matmul_compute": F16, "gradient_reduction": F32},
    ("ddp.py", "mean"): {**AMP, "loss_scale": F32, "matmul_compute": F16, "gradient_reduction": F32},
    ("diffusion.py",): {
        **AMP, "accumulator": F32, "matmul_compute": BF16, "forward_weight": F32 | BF16, "norm_computation": F32,
    },
    ("compiled.py",): {
        **AMP, "matmul_compute": BF16, "forward_weight": F32 | BF16, "norm_computation": F32, "softmax": F32,
    },
    ("checkpointed.py",): {
        **AMP, "matmul_compute": BF16, "forward_weight": F32 | BF16, "norm_computation": F32, "softmax": F32,
    },
}  # fmt: skip
WRONG = {
    ("imagenet.py", "wrong"): {"PA101", "PA201", "PA301", "PA402"},
    ("gpt.py", "wrong"): {"PA101", "PA301"},
    ("gpt.py", "float16", "unscaled"): {"PA201"},
    ("dcgan.py", "wrong"): {"PA101", "PA301", "PA402"},
    ("ddp.py", "hook"): {"PA501"},
    ("diffusion.py", "wrong"): {"PA101", "PA301"},
    ("compiled.py", "wrong"): {"PA101", "PA301"},
    ("checkpointed.py", "wrong"): {"PA101", "PA301"},
}
LLAMA = ("llama.py", "64", "2", "4", "2", "128", "64", "2", "16")
SHARDS = {**AMP, "matmul_compute": BF16, "forward_weight": BF16, "gradient_reduction": F32, "norm_computation": F32}
SHARDED = {
    ("fsdp1.py",): SHARDS,
    ("sharded.py", "32", "2", "64"): SHARDS,
    LLAMA: {**SHARDS, "gradient_reduction": F32 | BF16},
}
"""As one of four ranks, with values. Of the Llama, the gradients of norms are summed in bfloat16 by DTensor."""


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_a_right_script_holds_cudas_dtypes_and_no_rule_speaks(
    words: tuple[str, ...], preflight: Callable[..., Report]
) -> None:
    report = preflight(*words)
    table = held(report)
    assert {role: table.get(role) for role in RIGHT[words]} == RIGHT[words]
    assert harness.loud(report) == {}
    assert report.coverage.setup["device"] == "cuda"


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_its_wrong_twin_is_told_by_the_rules(words: tuple[str, ...], preflight: Callable[..., Report]) -> None:
    assert WRONG[words] <= set(harness.loud(preflight(*words)))


def test_one_of_four_ranks_of_a_synchronized_batch_norm_holds_cudas_dtypes(alone: Callable[..., Report]) -> None:
    report = alone("ddp.py")
    table = held(report)
    assert {role: table.get(role) for role in RIGHT["ddp.py",]} == RIGHT["ddp.py",]
    assert table["norm_running_statistics"] == F32
    assert harness.loud(report) == {}


@pytest.mark.parametrize("words", SHARDED, ids=" ".join)
def test_one_rank_of_a_sharded_model_holds_cudas_dtypes(words: tuple[str, ...], alone: Callable[..., Report]) -> None:
    report = alone(*words)
    table = held(report)
    assert {role: table.get(role) for role in SHARDED[words]} == SHARDED[words]
    assert harness.loud(report) == {}
    wrong = alone(*words, "wrong")
    assert "float32" not in held(wrong)["gradient_reduction"]
    assert "PA501" in {finding.rule for finding in wrong.findings}
