"""Traces GPT steps at real sizes on CUDA: role tables, bit-identity, what a step costs, syncs, and the autocast table.

With PRECAUDIT_GPU_DEVICE=cpu what needs no CUDA runs on the CPU, to try these tests out.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpt_steps
import harness
import pytest
import torch
from gpt_steps import EXPECTED, ON_GPU, RECIPES, TRACED, Run, train
from test_autocast_tables import CALLS, PAIRS, TABLES, first
from torch import Tensor

from precaudit.model.wire import Report
from precaudit.runtime.process.ledger import Ledger
from precaudit.runtime.taps import ops as op_probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a CUDA machine"),
]
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="asks CUDA itself")
STEADY = 0.05
"""By how much the time of a step after the trace may differ from one of a plain run: the noise of a quiet machine."""


@pytest.fixture(autouse=True)
def fresh_gpu() -> Iterator[None]:
    """Deterministic kernels, an empty cache, and no compiled code of the test before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)  # as the harness has it for the traced run
    gpt_steps.fresh()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    gpt_steps.fresh()


def dtypes(tensors: list[Tensor]) -> set[tuple[str, int]]:
    """(dtype, how many) as plain inspection sees them."""
    names = [str(t.dtype).removeprefix("torch.") for t in tensors]
    return {(name, names.count(name)) for name in names}


def row(report: Report, role: str) -> set[tuple[str, int]]:
    return {(r.dtype, r.tensors) for r in report.roles if r.role == role and r.dtype is not None}


@pytest.mark.parametrize("name", RECIPES)
def test_step_is_audited_and_undisturbed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses, role table, step times and memory of one recipe, plain and traced."""
    recipe, plain, traced = RECIPES[name], Run(), Run()
    around = gpt_steps.one_rank if recipe.alone else contextlib.nullcontext
    with around(tmp_path):
        train(recipe, plain)
    wanted = {
        "optimizer_state": dtypes(plain.states),
        "master_weight": dtypes(plain.parameters),
        "gradient": dtypes(plain.gradients),
    }
    plain.parameters, plain.states, plain.gradients = [], [], []
    gpt_steps.fresh()
    with around(tmp_path):
        report = harness.trace_call(lambda: train(recipe, traced))

    assert traced.losses == plain.losses, "the trace changed what was computed"
    for role, found in wanted.items():
        shown = row(report, role)
        assert {dtype for dtype, _ in shown} == {dtype for dtype, _ in found}, role
        if role == "optimizer_state":
            assert shown == found, role
    assert set(harness.loud(report)) >= EXPECTED.get(name, set())
    if name not in EXPECTED:
        assert not harness.loud(report)
    assert set(TRACED) <= set(report.coverage.traced_steps)
    cost = gpt_steps.cost(plain, traced)
    with capsys.disabled():
        print(
            f"\n{name}: step {cost.plain * 1e3:.1f} ms, traced x{cost.traced:.2f}, after the trace x{cost.after:.3f}, "
            f"peak {plain.peak / 2**30:.2f} GiB, traced {traced.peak / 2**30:.2f} GiB"
        )
    assert cost.after <= 1 + STEADY or not ON_GPU


@needs_cuda
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


@needs_cuda
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


@needs_cuda
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


@needs_cuda
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
