"""Prints what a step costs under the trace, beside torch's own dispatch modes, in one interleaved run.

Each round takes the same number of steps untraced, under an empty dispatch mode, under torch's DebugMode, under
precaudit's trace, and after the trace was taken out again; a ratio compares medians of one round. The spread is the
10th to 90th percentile over rounds. Times are this process's CPU time: take the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures" / "scripts")]

from char_gpt import GPT, Config, Corpus  # noqa: E402

from precaudit.runtime import session as runtime  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """A GPT whose steps are bound by launching small operations, or by computing large ones."""

    name: str
    config: Config
    batch: int
    goal: float
    """The most a traced step may cost, as a ratio to an untraced one."""


SHAPES = (
    Shape("launch-bound", Config(block=64, layers=12, heads=4, width=64), batch=4, goal=2.2),
    Shape("compute-bound", Config(block=128, layers=4, heads=4, width=256), batch=4, goal=1.2),
)
VARIANTS = ("untraced", "empty dispatch mode", "DebugMode", "precaudit, traced steps", "precaudit, after the trace")
WARM_UP = 3


class Empty(TorchDispatchMode):
    """The least that any dispatch mode can cost."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Counting(TorchDispatchMode):
    """Counts the operations of a step."""

    ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


class Program:
    """A training loop that can be advanced one step at a time."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.corpus = Corpus(shape.config.block, shape.batch)
        self.model = GPT(shape.config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)

    def step(self) -> float:
        """Takes one step; returns its CPU seconds, which other programs on the machine disturb less than the clock."""
        tokens, targets = self.corpus.next()
        start = time.process_time()
        loss = F.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        loss.item()
        return time.process_time() - start

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]


@contextlib.contextmanager
def debug_mode() -> Iterator[None]:
    """torch's own recorder of operations, with its defaults; its log is dropped at the end."""
    from torch.utils._debug_mode import DebugMode

    with DebugMode():
        yield


def traced_steps(program: Program, count: int) -> list[float]:
    """Seconds of `count` steps inside the window, its evidence and its end included; the skipped step is not timed."""
    settings = {"skip": 1, "steps": count, "attempts": 25 + count, "keep_going": True, "values": "sample"}
    session = runtime.start({**settings, "ranks_folder": None, "cwd": os.getcwd()})
    try:
        program.step()
        return program.steps(count)
    finally:
        session.rank_file.content()
        session.remove()


def measure(shape: Shape, rounds: int, count: int) -> dict[str, Any]:
    """Milliseconds and ratios of each variant, over interleaved rounds."""
    program = Program(shape)
    program.steps(WARM_UP)
    with Counting() as counter:
        program.step()
    traced_steps(program, count)  # the first trace imports what it needs

    def under(mode: Callable[[], Any]) -> list[float]:
        with mode():
            program.step()
            return program.steps(count)

    medians: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        taken = (
            program.steps(count),
            under(Empty),
            under(debug_mode),
            traced_steps(program, count),
            program.steps(count),
        )
        for name, seconds in zip(VARIANTS, taken, strict=True):
            medians[name].append(statistics.median(seconds))
    base = medians["untraced"]
    result: dict[str, Any] = {"ops_per_step": counter.ops, "goal": shape.goal, "variants": {}}
    for name, values in medians.items():
        ratios = sorted(value / plain for value, plain in zip(values, base, strict=True))
        result["variants"][name] = {
            "ms": round(statistics.median(values) * 1e3, 2),
            "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[len(ratios) // 10], 3),
            "high": round(ratios[-1 - len(ratios) // 10], 3),
        }
    plain = sorted(value / statistics.median(base) for value in base)
    result["untraced_spread"] = [round(plain[len(plain) // 10], 3), round(plain[-1 - len(plain) // 10], 3)]
    return result


def show(name: str, result: dict[str, Any]) -> None:
    low, high = result["untraced_spread"]
    print(f"{name}: {result['ops_per_step']} ops a step; untraced rounds spread {low:.2f} to {high:.2f}")
    print(f"  {'':28}{'ms/step':>9}{'ratio':>8}   spread")
    for variant, row in result["variants"].items():
        print(f"  {variant:28}{row['ms']:9.1f}{row['ratio']:8.2f}   {row['low']:.2f} to {row['high']:.2f}")
    ratio = result["variants"]["precaudit, traced steps"]["ratio"]
    verdict = "met" if ratio <= result["goal"] else "MISSED"
    print(f"  goal for traced steps: at most {result['goal']} ({verdict})\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="steps of each variant in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/trace-<date>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    found = machine()
    print(f"torch {found['torch']}, Python {found['python']}, {found['cores']} cores, {found['threads']} thread(s)\n")
    results = {}
    for shape in SHAPES:
        if args.only in (None, shape.name):
            results[shape.name] = measure(shape, args.rounds, args.steps)
            show(shape.name, results[shape.name])
    if args.save:
        path = ROOT / "benchmarks" / "results" / f"trace-{found['date']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
