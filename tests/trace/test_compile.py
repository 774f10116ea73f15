"""torch.compile stays on under the trace: the same graphs and bits; what regions hold is told from their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_oracle import inspected_state, reported, traced
from torch import nn

from precaudit.model.wire import Report


class Run:
    """One training run with something compiled: its losses, its bits, and what Dynamo counted."""

    def __init__(self, what: str, optimizer: str = "AdamW", **compile_with: Any) -> None:
        self.what, self.optimizer_name, self.compile_with = what, optimizer, compile_with
        self.losses: list[float] = []
        self.counted: dict[str, int] = {}
        self.optimizer: Any = None

    def __call__(self) -> None:
        import torch._dynamo
        from torch._dynamo.utils import counters

        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model: Any = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))
        self.parameters = list(model.parameters())
        self.optimizer = self.build()
        forward: Callable[[Any, Any], Any] = self.forward(model)
        step: Callable[[], Any] = self.optimizer.step
        if self.what in ("model", "model and step"):
            forward = torch.compile(forward, **self.compile_with)
        if self.what in ("step", "model and step"):
            step = torch.compile(step, **self.compile_with)
        for number in range(5):
            loss = forward(torch.randn(8, 16), torch.randint(0, 4, (8,)))
            self.optimizer.zero_grad()
            loss.backward()
            step()
            self.losses.append(loss.item())
            if number == 2:  # the traced steps are over; a compiled step is compiled again when the hooks are gone
                self.counted = {
                    "graphs": counters["stats"]["unique_graphs"],
                    "cache hits": counters["aot_autograd"]["autograd_cache_hit"],
                }
        held = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        self.bits = [t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in (*self.parameters, *held)]

    def build(self) -> Any:
        if self.optimizer_name == "traceable":
            return Traceable(self.parameters)
        return torch.optim.AdamW(self.parameters, lr=1e-3, foreach=True)

    @staticmethod
    def forward(model: nn.Module) -> Callable[[Any, Any], Any]:
        def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return F.cross_entropy(model(x), y)

        return forward


class AutocastAround(Run):
    """Only the model is compiled: AOTAutograd's cache takes no graph that enters autocast itself."""

    @staticmethod
    def forward(model: nn.Module) -> Callable[[Any, Any], Any]:
        compiled: Any = torch.compile(model)

        def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return F.cross_entropy(compiled(x), y)

        return forward


class Traceable(torch.optim.Optimizer):
    """An optimizer whose whole step is one graph: a hook inside of it would break that."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        for p in self.param_groups[0]["params"]:
            self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p]["momentum"]
            momentum.mul_(0.9).add_(p.grad)
            p.sub_(momentum, alpha=1e-2)


def both_ways(what: str, **how: Any) -> tuple[Run, Run, Report]:
    """The run plain and under the trace, bit by bit the same, with the trace's report."""
    Run(what, **how)()  # fills the caches, where the mode has any
    plain, under = Run(what, **how), Run(what, **how)
    plain()
    report = traced(under)
    assert under.losses == plain.losses
    assert under.bits == plain.bits
    assert under.counted == plain.counted, "the trace changed what is compiled, or a cache key"
    assert [note for note in report.coverage.notes if "could not follow" in note] == []
    assert report.coverage.traced_steps == [2, 3]
    assert reported(report, "optimizer_state") == inspected_state(under.optimizer)
    assert reported(report, "master_weight") == {"float32": 6}
    assert reported(report, "gradient") == {"float32": 6}
    assert report.findings == []
    return plain, under, report


def graph_level(report: Report, role: str) -> dict[str, int]:
    return {f["dtype"]: f["count"] for f in report.facts if f["role"] == role and f["attrs"].get("level") == "graph"}


def test_compiled_model_and_step_run_as_without_the_trace() -> None:
    _, _, report = both_ways("model and step", optimizer="traceable", backend="aot_eager", fullgraph=True)
    assert graph_level(report, "matmul_compute") == {"bfloat16": 2}
    assert set(graph_level(report, "activation")) == {"bfloat16", "float32"}
    assert graph_level(report, "norm_computation") == {"float32": 1}
    assert report.coverage.compiled["regions"] == 1
    assert report.coverage.compiled["operations"] > 10
    assert report.coverage.not_observed["forward_weight"].startswith("compiled regions do not tell")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "step", "model and step"])
@pytest.mark.parametrize(
    "how",
    [
        {"backend": "aot_eager"},
        {},
        {"mode": "max-autotune-no-cudagraphs"},
        {"fullgraph": True, "optimizer": "traceable"},
        {"mode": "reduce-overhead", "dynamic": True},
    ],
    ids=str,
)
def test_every_mode_computes_the_same_bits_from_the_same_graphs(what: str, how: dict[str, Any]) -> None:
    _, _, report = both_ways(what, **how)
    if what != "step":
        assert graph_level(report, "matmul_compute") == {"bfloat16": 2}
        assert 0 < report.coverage.compiled["share"] <= 1
    else:
        assert report.coverage.compiled == {}


@pytest.mark.slow
def test_graphs_fresh_and_from_the_cache_tell_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runs = [AutocastAround("nothing else"), AutocastAround("nothing else")]
    fresh, cached = (traced(run) for run in runs)
    assert [run.counted["cache hits"] for run in runs] == [0, 1]
    for role in ("activation", "matmul_compute", "norm_computation"):
        assert graph_level(fresh, role) == graph_level(cached, role) != {}


def test_eager_turns_compilation_off_and_says_so() -> None:
    run = Run("model and step", optimizer="traceable", fullgraph=True)
    report = traced(run, eager=True)
    assert run.counted == {"graphs": 0, "cache hits": 0}
    assert report.coverage.compiled == {}
    assert "torch.compile was off: what it was given ran eagerly (--eager)" in report.coverage.notes
    assert reported(report, "optimizer_state") == {"float32": 6}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_bit_optimizers_of_torchao_hold_blocks_and_run_the_same(kind: str, dtype: torch.dtype) -> None:
    codes = {"AdamW8bit": "uint8", "AdamW4bit": "uint8", "AdamWFp8": "float8_e4m3fn"}[kind]
    name = str(dtype).removeprefix("torch.")
    _, report = low_bit(kind, dtype)
    rows = {row.dtype: row for row in report.roles if row.role == "optimizer_state"}
    assert (rows[codes].tensors, rows[codes].verdict, rows[codes].because) == (2, "allowed", ["block-wise"])
    assert rows[name].tensors == 6, "tensors under 4,096 elements stay as the parameter"
    assert reported(report, "master_weight") == {name: 4}
    assert {f.rule for f in report.findings} == ({"PA101", "PA301"} if name == "bfloat16" else set())


@pytest.mark.slow
def test_stochastic_rounding_inside_a_compiled_step_is_read_off_its_graph() -> None:
    _, report = low_bit("AdamW8bit", torch.bfloat16, bf16_stochastic_round=True)
    (row,) = [row for row in report.roles if row.role == "master_weight"]
    assert (row.dtype, row.verdict, row.because) == ("bfloat16", "allowed", ["stochastic-rounding"])


def low_bit(kind: str, dtype: torch.dtype, **arguments: Any) -> tuple[list[float], Report]:
    import torch._dynamo
    import torchao.optim

    def train() -> list[float]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4)).to(dtype)
        optimizer = getattr(torchao.optim, kind)(model.parameters(), **arguments)
        losses = []
        for _ in range(4):
            loss = model(torch.randn(8, 64, dtype=dtype)).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    plain = train()
    under: list[float] = []
    report = traced(lambda: under.extend(train()))
    assert under == plain
    assert [note for note in report.coverage.notes if "could not follow" in note] == []
    return plain, report


@pytest.mark.slow
def test_float8_training_is_seen_through_its_wrappers() -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def train() -> list[float]:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(5):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.randn(16, 64)).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    plain = train()
    under: list[float] = []
    report = traced(lambda: under.extend(train()))
    assert under == plain
    assert [note for note in report.coverage.notes if "could not follow" in note] == []
    assert reported(report, "master_weight") == {"float32": 4}
    assert reported(report, "optimizer_state") == {"float32": 8}
    assert [f for f in report.findings if f.severity.value != "note"] == []
