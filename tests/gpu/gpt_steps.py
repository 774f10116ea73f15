"""A GPT's training steps at real sizes, as people train it: what `tests/gpu` asserts and `benchmarks/gpu.py` times.

PRECAUDIT_GPU_LAYERS, _WIDTH, _LENGTH, _BATCH and _WORDS make it smaller. With PRECAUDIT_GPU_DEVICE=cpu the CPU stands
in for the GPU, so that the commands can be tried out where there is none: their figures are then of no GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICE = os.environ.get("PRECAUDIT_GPU_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"


def size(name: str, default: int) -> int:
    return int(os.environ.get(f"PRECAUDIT_GPU_{name}", default))


LAYERS, WIDTH, LENGTH = size("LAYERS", 12), size("WIDTH", 2048), size("LENGTH", 2048)
BATCH, WORDS, HEAD = size("BATCH", 1), size("WORDS", 50_304), 64
STEPS, TRACED = 8, (2, 3)
"""Steps of a run, and those of them that a trace sees by default."""


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
    """One training run: what it computed, how long each step took, and what it left."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    """Bytes that were allocated on the device at most; 0 on a CPU, which does not count them."""
    parameters: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    parameters: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False
    wrap: Callable[[nn.Module], Any] | None = None
    graphed: bool = False
    """The whole step is one CUDA graph, captured after three steps of its own and replayed from then on."""
    adamw: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    """It needs a process group, of one rank."""

    def make(self) -> tuple[Any, torch.optim.Optimizer, Any]:
        """The model, its optimizer, and the GradScaler or None; the same numbers each time."""
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model: Any = GPT().to(self.parameters)
        if self.wrap is not None:
            model = self.wrap(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **self.adamw)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10) if self.scaled else None
        return model, optimizer, scaler


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
    "bfloat16 autocast": Recipe(autocast=torch.bfloat16),
    "float16 autocast, GradScaler, fused AdamW": Recipe(autocast=torch.float16, scaled=True, adamw={"fused": True}),
    "pure bfloat16": Recipe(parameters=torch.bfloat16),
    "torch.compile, bfloat16 autocast": Recipe(autocast=torch.bfloat16, wrap=compiled),
    "CUDA graph, bfloat16 autocast": Recipe(autocast=torch.bfloat16, graphed=True, adamw={"capturable": ON_GPU}),
    "FSDP2": Recipe(wrap=sharded, alone=True),
}
EXPECTED: dict[str, set[str]] = {
    "pure bfloat16": {"PA101", "PA301"},
}
"""Rules that must speak; no other recipe may have an error or a warning."""


@contextlib.contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A process group of one; the file store needs no free port."""
    hook = sys.excepthook  # init_process_group sets another
    store = torch.distributed.FileStore(str(folder / f"store-{time.monotonic_ns()}"), 1)
    torch.distributed.init_process_group("nccl" if ON_GPU else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        sys.excepthook = hook
        if torch.distributed.is_initialized():  # the harness ends it after a traced run
            torch.distributed.destroy_process_group()


def wait() -> None:
    """Until the device has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


def fresh() -> None:
    """An empty cache, and no compiled code of the run before."""
    torch._dynamo.reset()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Steps:
    """Takes steps, from the fourth on as replays of a CUDA graph where the recipe wants that."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model, self.optimizer, self.scaler = recipe.make()
        self._taken = 0
        self._graph: Any = None
        self._words = self._loss = torch.empty(0)

    def __call__(self, words: Tensor) -> Tensor:
        """The loss of one step, which is taken."""
        self._taken += 1
        if not (self.recipe.graphed and ON_GPU):
            return self._step(words)
        if self._taken <= TRACED[-1]:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                loss = self._step(words)
            torch.cuda.current_stream().wait_stream(beside)
            return loss
        if self._graph is None:
            self._words, self._graph = words.clone(), torch.cuda.CUDAGraph()
            self.optimizer.zero_grad()
            with torch.cuda.graph(self._graph):
                self._loss = self._step(self._words)
        self._words.copy_(words)
        self._graph.replay()
        return self._loss

    def _step(self, words: Tensor) -> Tensor:
        dtype, scaler = self.recipe.autocast, self.scaler
        region = torch.autocast(DEVICE, dtype=dtype) if dtype is not None else contextlib.nullcontext()
        with region:
            logits = self.model(words[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), words[:, 1:].flatten())
        self.optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        return loss


def train(recipe: Recipe, run: Run, steps: int = STEPS) -> None:
    """The loop of every recipe. It reads the loss once per step, after the step's own time was taken."""
    step = Steps(recipe)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    batches = torch.Generator(device=DEVICE).manual_seed(1)
    for _ in range(steps):
        words = torch.randint(0, WORDS, (BATCH, LENGTH + 1), device=DEVICE, generator=batches)
        wait()
        began = time.perf_counter()
        loss = step(words)
        wait()
        run.seconds.append(time.perf_counter() - began)
        run.losses.append(loss.item())
    run.peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
    run.parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
    run.gradients = [p.grad for p in run.parameters if p.grad is not None]
    run.states = [
        value for p in run.parameters for name, value in step.optimizer.state[p].items() if name.startswith("exp_avg")
    ]


@dataclass(frozen=True)
class Cost:
    """What a trace cost, beside a plain run of the same."""

    plain: float
    """Seconds of a step: the least of those after the traced ones."""
    traced: float
    """The longest traced step over that."""
    after: float
    """The shortest step after the trace over that."""


def cost(plain: Run, traced: Run) -> Cost:
    """Of two runs of one recipe."""
    steady = min(plain.seconds[TRACED[-1] + 1 :])
    seen = max(traced.seconds[step - 1] for step in TRACED)
    return Cost(steady, seen / steady, min(traced.seconds[TRACED[-1] + 1 :]) / steady)
