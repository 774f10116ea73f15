"""autocast("cuda") follows CUDA's lists, autocast("cpu") its own, and each says what it is asked."""

from __future__ import annotations

import harness
import pytest
import torch
import torch.nn.functional as F
from test_autocast_tables import CALLS, PAIRS, TABLES, first
from torch.utils._python_dispatch import TorchDispatchMode

from precaudit.preflight.layer import Layer


def made(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    return lambda *shape: torch.rand(*shape).to("cuda", dtype)


UNLIKE = {"lstm", "gru", "rnn", "stft"}
"""What docs/preflight.md says is otherwise: recurrent layers run outside of cuDNN, and the CPU has no half FFT."""


def test_each_operation_is_lowered_widened_or_promoted_as_cudas_table_says(layer: Layer) -> None:
    """Both halves of one table: what a script sees of autocast("cuda")."""
    wrong = []
    low, wide = made(torch.bfloat16)(3, 3), made(torch.float32)(3, 3)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for op in set(TABLES["cuda"]["lower"]) - UNLIKE:
            out = first(CALLS[op](made(torch.float32)))
            if (out.dtype, out.device.type) != (torch.bfloat16, "cuda"):
                wrong.append(op)
        for op in set(TABLES["cuda"]["float32"]) - UNLIKE:
            if first(CALLS[op](made(torch.bfloat16))).dtype not in (torch.float32, torch.complex64):
                wrong.append(op)
        for op in TABLES["cuda"]["promote"]:
            if {first(PAIRS[op](*pair)).dtype for pair in ((low, wide), (wide, low))} != {torch.float32}:
                wrong.append(op)
    assert wrong == []


def test_what_cuda_refuses_is_refused(layer: Layer) -> None:
    with torch.autocast("cuda"), pytest.raises(RuntimeError, match="unsafe to autocast"):
        CALLS["binary_cross_entropy"](made(torch.float32))


def test_cross_entropy_keeps_its_log_softmax_low(layer: Layer) -> None:
    logits, target = torch.randn(4, 8, device="cuda", dtype=torch.bfloat16), torch.zeros(4, dtype=torch.long)
    with torch.autocast("cuda", torch.bfloat16):
        loss = F.cross_entropy(logits, target, reduction="none")
    inside = F.nll_loss(F.log_softmax(logits, -1).float(), target, reduction="none")
    assert loss.dtype is torch.float32
    assert torch.equal(loss, inside)
    assert not torch.equal(loss, F.cross_entropy(logits.float(), target, reduction="none"))


def test_autocast_of_the_cpu_is_what_it_was() -> None:
    from precaudit.preflight.layer import start

    def table() -> dict[str, str]:
        out = {}
        for op, call in CALLS.items():
            torch.manual_seed(0)
            try:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    out[op] = str(first(call(lambda *shape: torch.rand(*shape).to(torch.bfloat16))).dtype)
            except RuntimeError as error:
                out[op] = str(error)[:40]
        return out

    before = table()
    layer = start({"device": "h100"})
    try:
        assert table() == before
    finally:
        layer.remove()


def test_each_device_says_its_own_state(layer: Layer) -> None:
    on, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    with torch.autocast("cuda", torch.float16):
        assert (on("cuda"), on("cpu"), on(), dtype("cuda"), dtype("cpu")) == (
            True,
            False,
            True,
            torch.float16,
            torch.bfloat16,
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            low = torch.mm(made(torch.float32)(2, 2), made(torch.float32)(2, 2))
        with torch.autocast("cuda", enabled=False):
            wide = torch.mm(made(torch.float32)(2, 2), made(torch.float32)(2, 2))
    with torch.autocast("cpu"):
        assert (on("cuda"), on("cpu")) == (False, True)
    assert (on("cuda"), on("cpu")) == (False, False)
    assert (low.dtype, wide.dtype) == (torch.float16, torch.float32)


def test_custom_fwd_casts_its_inputs(layer: Layer) -> None:
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            seen.extend([x.dtype, torch.is_autocast_enabled("cuda")])
            return x * 2

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient * 2

    with torch.autocast("cuda", torch.float16):
        Double.apply(torch.ones(2, device="cuda", dtype=torch.float16))
    assert seen == [torch.float32, False]


LOW_INSIDE = {"_softmax", "_log_softmax", "pow", "exp", "log", "sum", "prod", "norm", "linalg_vector_norm", "logsumexp"}
"""Kernels that CUDA's autocast is there to keep in float32."""


def test_only_what_the_table_names_is_low_inside_of_a_float32_operation(layer: Layer) -> None:
    """By what the kernels do: none of them takes and gives half precision inside of an op that is float32 outside."""
    found = set()

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            name = func._schema.name.removeprefix("aten::")
            if name in LOW_INSIDE and isinstance(out, torch.Tensor) and out.dtype is torch.bfloat16:
                found.add(op)
            return out

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for op in set(TABLES["cuda"]["float32"]) - UNLIKE:
            with Kernels():
                CALLS[op](made(torch.bfloat16))
    assert found == set(TABLES["cuda"]["low_inside"])


@pytest.mark.parametrize(
    ("reduction", "rows", "severity", "message"),
    [
        ("mean", 8192, "note", "bfloat16; only its mean is used"),
        ("none", 8192, "warning", "bfloat16, and each row of it is used"),
        ("mean", 16, "warning", "bfloat16, and the loss shows it"),
    ],
)
def test_low_logits_of_cross_entropy_weigh_by_what_is_made_of_them(
    layer: Layer, reduction: str, rows: int, severity: str, message: str
) -> None:
    """The mean over 8192 rows is off by less than 1e-3, that over 16 by more."""

    def train() -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(16, 32).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            x, y = torch.randn(rows, 16, device="cuda"), torch.randint(0, 32, (rows,), device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(model(x) * 5, y, reduction=reduction)
            (loss if reduction == "mean" else loss.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    report = harness.trace_call(train, preflight=layer.told)
    (found,) = (finding for finding in report.findings if finding.rule == "PA404")
    assert found.severity.value == severity
    assert found.message == f"CUDA autocast leaves cross_entropy's log_softmax in {message}"
    if reduction == "mean":
        assert (found.evidence.get("loss_error", 0.0) >= 1e-3) is (severity == "warning")
