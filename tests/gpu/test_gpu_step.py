"""Traces a GPT step at real sizes on CUDA; PRECAUDIT_GPU_LAYERS, _WIDTH, _LENGTH, _BATCH and _WORDS make it smaller."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from test_autocast_tables import CALLS, PAIRS, TABLES, first
from torch import Tensor, nn

from precaudit.model.wire import Report
from precaudit.runtime.process.ledger import Ledger
from precaudit.runtime.taps import ops as op_probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA machine"),
]


def size(name: str, default: int) -> int:
    return int(os.environ.get(f"PRECAUDIT_GPU_{name}", default))


LAYERS, WIDTH, LENGTH = size("LAYERS", 12), size("WIDTH", 2048), size("LENGTH", 2048)
BATCH, WORDS, HEAD = size("BATCH", 1), size("WORDS", 50_304), 64
STEPS, TRACED = 8, (2, 3)
STEADY = 0.05
"""By how much the time of a step after the trace may differ from one of a plain run: the noise of a quiet machine."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.before(x)).view(*x.shape[:2], 3, WIDTH // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        return self.head(self.last(self.blocks(x)))


@dataclass
class Run:
    """One training run: what it printed, how long each step took, and what it left."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    parameters: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


Recipe = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Any, Any]]
"""Makes the model, its optimizer, the autocast dtype (or None) and the GradScaler (or None)."""


def recipe(
    *,
    parameters: torch.dtype = torch.float32,
    autocast: Any = None,
    scaled: bool = False,
    wrap: Any = None,
    **adamw: Any,
) -> Recipe:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, Any, Any]:
        torch.manual_seed(0)
        with torch.device("cuda"):
            model: nn.Module = GPT().to(parameters)
        if wrap is not None:
            model = wrap(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **adamw)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10) if scaled else None
        return model, optimizer, autocast, scaler

    return make


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)


def sharded(model: nn.Module) -> Any:
    """FSDP2 on one GPU: float32 shards, bfloat16 compute, float32 reduction."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    # Only the last output: a block's float32 output would meet the next layer's bfloat16 weights.
    fully_shard(model, mp_policy=replace(policy, output_dtype=torch.float32))
    return model


RECIPES: dict[str, Recipe] = {
    "bfloat16 autocast": recipe(autocast=torch.bfloat16),
    "float16 autocast, GradScaler, fused AdamW": recipe(autocast=torch.float16, scaled=True, fused=True),
    "pure bfloat16": recipe(parameters=torch.bfloat16),
    "torch.compile, bfloat16 autocast": recipe(autocast=torch.bfloat16, wrap=compiled),
    "FSDP2": recipe(wrap=sharded),
}
EXPECTED: dict[str, set[str]] = {
    "pure bfloat16": {"PA101", "PA301"},
}
"""Rules that must speak; no other recipe may have an error or a warning."""


@pytest.fixture(autouse=True)
def fresh_gpu() -> Iterator[None]:
    """Deterministic kernels, an empty cache, and no compiled code of the test before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch._dynamo.reset()
    torch.cuda.empty_cache()


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of one; the file store needs no free port."""
    torch.distributed.init_process_group(
        "nccl", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(make: Recipe, run: Run, steps: int = STEPS) -> None:
    """The loop of every recipe. It reads the loss once per step, after the step's own time was taken."""
    model, optimizer, dtype, scaler = make()
    torch.cuda.reset_peak_memory_stats()
    batches = torch.Generator(device="cuda").manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(0, WORDS, (BATCH, LENGTH + 1), device="cuda", generator=batches)
        torch.cuda.synchronize()
        began = time.perf_counter()
        region = torch.autocast("cuda", dtype=dtype) if dtype is not None else contextlib.nullcontext()
        with region:
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        run.seconds.append(time.perf_counter() - began)
        run.losses.append(loss.item())
    run.peak = torch.cuda.max_memory_allocated()
    run.parameters = [p for group in optimizer.param_groups for p in group["params"]]
    run.gradients = [p.grad for p in run.parameters if p.grad is not None]
    run.states = [
        value for p in run.parameters for name, value in optimizer.state[p].items() if name.startswith("exp_avg")
    ]


def dtypes(tensors: list[Tensor]) -> set[tuple[str, int]]:
    """(dtype, how many) as plain inspection sees them."""
    names = [str(t.dtype).removeprefix("torch.") for t in tensors]
    return {(name, names.count(name)) for name in names}


def row(report: Report, role: str) -> set[tuple[str, int]]:
    return {(r.dtype, r.tensors) for r in report.roles if r.role == role and r.dtype is not None}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "FSDP2"])
def test_step_is_audited_and_undisturbed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    audit(name, capsys)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_fsdp2_on_one_gpu_is_audited_and_undisturbed(one_rank: None, capsys: pytest.CaptureFixture[str]) -> None:
    # The plain run comes first: the harness takes the process group down after the traced one.
    audit("FSDP2", capsys)


def audit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses, role table, step times and memory of one recipe, plain and traced."""
    plain, traced = Run(), Run()
    train(RECIPES[name], plain)
    wanted = {
        "optimizer_state": dtypes(plain.states),
        "master_weight": dtypes(plain.parameters),
        "gradient": dtypes(plain.gradients),
    }
    losses, steady, peak = plain.losses, min(plain.seconds[TRACED[-1] + 1 :]), plain.peak
    plain.parameters, plain.states, plain.gradients = [], [], []
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    report = harness.trace_call(lambda: train(RECIPES[name], traced))

    assert traced.losses == losses, "the trace changed what was computed"
    for role, found in wanted.items():
        shown = row(report, role)
        assert {dtype for dtype, _ in shown} == {dtype for dtype, _ in found}, role
        if role == "optimizer_state":
            assert shown == found, role
    assert set(harness.loud(report)) >= EXPECTED.get(name, set())
    if name not in EXPECTED:
        assert not harness.loud(report)
    assert set(TRACED) <= set(report.coverage.traced_steps)
    after = min(traced.seconds[TRACED[-1] + 1 :])
    ratio = max(traced.seconds[step - 1] for step in TRACED) / steady
    with capsys.disabled():
        print(
            f"\n{name}: step {steady * 1e3:.1f} ms, traced x{ratio:.2f}, after the trace x{after / steady:.3f}, "
            f"peak {peak / 2**30:.2f} GiB, traced {traced.peak / 2**30:.2f} GiB"
        )
    assert after / steady <= 1 + STEADY


def test_ops_of_the_backward_thread_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's backward runs in a thread of its own; the dispatch mode of the thread that called it reaches there."""
    seen: dict[int, set[str]] = {}
    original = op_probe.OpMode.__torch_dispatch__

    def noting(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.setdefault(threading.get_ident(), set()).add(func._schema.name)
        return original(mode, func, types, args, kwargs)

    monkeypatch.setattr(op_probe.OpMode, "__torch_dispatch__", noting)
    harness.trace_call(lambda: train(RECIPES["bfloat16 autocast"], Run(), 4))
    elsewhere = set[str]().union(*(names for thread, names in seen.items() if thread != threading.get_ident()))
    assert "aten::native_layer_norm_backward" in elsewhere
    assert {"aten::mm", "aten::addmm"} & elsewhere


@pytest.mark.parametrize("name", ["bfloat16 autocast", "pure bfloat16"])
def test_evidence_costs_one_sync_per_traced_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by torch's own sync debug mode, less what the script itself does in a plain run."""

    def syncs(train_it: Callable[[], object]) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train_it()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    def traced() -> None:
        # The harness resets the filters for a run; every sync is to be counted, not the first of a line.
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            train(RECIPES[name], Run(), TRACED[-1])

    alone = syncs(traced)
    with_trace = syncs(lambda: harness.trace_call(traced))
    assert with_trace - alone <= len(TRACED)


def test_reading_the_numbers_of_a_step_is_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bound from the other side: however many numbers wait at a step boundary, one sync reads them."""
    syncs: list[int] = []
    settle = Ledger.settle

    def counting(ledger: Ledger) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                settle(ledger)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        syncs.append(sum("synchroniz" in str(warning.message) for warning in caught))

    monkeypatch.setattr(Ledger, "settle", counting)
    harness.trace_call(lambda: train(RECIPES["pure bfloat16"], Run(), TRACED[-1]))
    assert max(syncs) == 1


def test_cuda_table_is_what_cuda_does() -> None:
    """The calls of the CPU test, on real CUDA tensors; here every op of the table can run."""
    table = TABLES["cuda"]

    def maker(dtype: torch.dtype) -> Callable[..., Tensor]:
        return lambda *shape: torch.rand(*shape, device="cuda").to(dtype)

    # Recurrent layers of CALLS keep their weights on the CPU.
    recurrent = {"lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"}
    wrong = []
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        for op in table["lower"]:
            if op not in recurrent and first(CALLS[op](maker(torch.float32))).dtype is not torch.bfloat16:
                wrong.append(op)
        for op in table["float32"]:
            if first(CALLS[op](maker(torch.bfloat16))).dtype is not torch.float32:
                wrong.append(op)
        low, wide = maker(torch.bfloat16)(3, 3), maker(torch.float32)(3, 3)
        wrong += [op for op in table["promote"] if first(PAIRS[op](low, wide)).dtype is not torch.float32]
        for op in table["banned"]:
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                CALLS[op](maker(torch.float32))
    assert not wrong
