"""The training loops whose steps `benchmarks/trace.py` times: what people run, and what costs a dispatch mode most.

Each is a `Program` that can be advanced one step at a time and says what its step costs in CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from char_gpt import GPT, Config, Corpus


class Program:
    """A training loop, one step at a time. Subclasses make a model and an optimizer and say what one step does."""

    def advance(self) -> None:
        raise NotImplementedError

    def step(self) -> float:
        """Takes one step; returns its CPU seconds, which other programs on the machine disturb less than the clock."""
        start = time.process_time()
        self.advance()
        return time.process_time() - start

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]


class CharGpt(Program):
    """A GPT on real text; in bfloat16 it is the run that has findings, and so evidence to measure."""

    def __init__(self, config: Config, batch: int, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.corpus = Corpus(config.block, batch)
        self.model = GPT(config).to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)

    def advance(self) -> None:
        tokens, targets = self.corpus.next()
        loss = F.cross_entropy(self.model(tokens).flatten(0, 1).float(), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        loss.item()


class MicroBatches(Program):
    """A small classifier under autocast whose step sums the gradients of many micro-batches."""

    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.count = count
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.inputs, self.targets = torch.randn(16, 64), torch.randint(10, (16,))

    def advance(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.count):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(self.model(self.inputs).float(), self.targets) / self.count
            loss.backward()
        self.optimizer.step()


class Recurrence(Program):
    """A recurrent cell written by hand: tiny operations only, hundreds of time steps in one graph."""

    def __init__(self, length: int) -> None:
        torch.manual_seed(0)
        self.read, self.keep = torch.nn.Linear(16, 32), torch.nn.Linear(32, 32)
        self.optimizer = torch.optim.SGD([*self.read.parameters(), *self.keep.parameters()], lr=1e-3)
        self.inputs = torch.randn(length, 4, 16)

    def advance(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        state = torch.zeros(4, 32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for value in self.inputs:
                state = torch.tanh(self.read(value) + self.keep(state))
        state.float().square().mean().backward()
        self.optimizer.step()


class ManyParameters(Program):
    """Hardly any arithmetic and very many parameters: what is asked once per tensor dominates."""

    def __init__(self, count: int, dtype: torch.dtype = torch.float32, **how: Any) -> None:
        torch.manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(8, 8).to(dtype)) for _ in range(count)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, **how)

    def advance(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        sum(parameter.float().square().mean() for parameter in self.parameters).backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Shape:
    """One program, and the most that a traced step of it may cost."""

    make: Callable[[], Program]
    goal: float
    """As a ratio to an untraced step."""
    steps: int = 2
    """Steps of each variant in a round: as many as the default window traces, or more where they are short."""
    beside_debug_mode: bool = False


LAUNCH_BOUND = Config(block=64, layers=12, heads=4, width=64)
COMPUTE_BOUND = Config(block=128, layers=4, heads=4, width=256)

SHAPES: Mapping[str, Shape] = {
    "launch-bound": Shape(partial(CharGpt, LAUNCH_BOUND, 4), 1.55, 5, True),
    "compute-bound": Shape(partial(CharGpt, COMPUTE_BOUND, 4), 1.08, 5, True),
    "bfloat16-gpt": Shape(partial(CharGpt, LAUNCH_BOUND, 4, torch.bfloat16), 2.0, 5),
    "64-micro-batches": Shape(partial(MicroBatches, 64), 2.3),
    "200-micro-batches": Shape(partial(MicroBatches, 200), 2.3),
    "rnn-500": Shape(partial(Recurrence, 500), 4.5),
    "1000-float32-loop": Shape(partial(ManyParameters, 1000, foreach=False), 3.0),
    "1000-float32-foreach": Shape(partial(ManyParameters, 1000, foreach=True), 3.0),
    "1000-float32-fused": Shape(partial(ManyParameters, 1000, fused=True), 3.0),
    "6000-float32-foreach": Shape(partial(ManyParameters, 6000, foreach=True), 3.0),
    "1000-bfloat16-loop": Shape(partial(ManyParameters, 1000, torch.bfloat16, foreach=False), 6.0),
    "1000-bfloat16-foreach": Shape(partial(ManyParameters, 1000, torch.bfloat16, foreach=True), 6.0),
    "1000-bfloat16-fused": Shape(partial(ManyParameters, 1000, torch.bfloat16, fused=True), 6.0),
}


class Wide(Program):
    """A model of 200 MB trained under autocast: what the trace holds beside it shows as memory."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(12)])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.inputs = torch.randn(8, 2048)

    def advance(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.model(self.inputs).float().square().mean()
        loss.backward()
        self.optimizer.step()


MEMORY: Mapping[str, tuple[Callable[[], Program], float]] = {
    "200 MB model": (Wide, 1.02),
    "100,000 bfloat16 tensors": (partial(ManyParameters, 100_000, torch.bfloat16, foreach=True), 1.30),
}
"""Program, and the most that its peak memory under the trace may be, as a ratio to the peak without."""
