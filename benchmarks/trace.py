"""Prints what a step costs under the trace, beside torch's own dispatch modes, in one interleaved run.

Each round takes the same number of steps untraced, under an empty dispatch mode (the floor of the technique), before
the window opens, inside the window, and after the trace was taken out again; for the two GPTs also under torch's own
DebugMode. A ratio compares medians of one round; the spread is the 10th to 90th percentile over rounds. Times are this
process's CPU time: take the ratios, not the milliseconds. Peak memory is that of whole processes, with and without.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures" / "scripts")]

import identity  # noqa: E402
import page  # noqa: E402
from page import AFTER, BEFORE, EMPTY, TRACED  # noqa: E402
from shapes import MEMORY, SHAPES, Program, Shape  # noqa: E402

from precaudit.runtime import session as runtime  # noqa: E402

BEFORE_GOAL, AFTER_GOAL = 1.05, 1.00
WARM_UP = 3
FAR = 1_000_000
"""Steps to skip where the window is never to open."""


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


@contextlib.contextmanager
def debug_mode() -> Iterator[None]:
    """torch's own recorder of operations, with its defaults; its log is dropped at the end."""
    from torch.utils._debug_mode import DebugMode

    with DebugMode():
        yield


def settings(skip: int, steps: int) -> dict[str, Any]:
    """Those of a trace that writes nothing."""
    attempts = 25 + steps
    window = {"skip": skip, "steps": steps, "attempts": attempts, "keep_going": True, "values": "sample"}
    return {**window, "ranks_folder": None, "cwd": os.getcwd()}


@contextlib.contextmanager
def trace(skip: int, steps: int) -> Iterator[None]:
    """The trace around some steps; its evidence and its end are inside."""
    session = runtime.start(settings(skip, steps))
    try:
        yield
    finally:
        session.rank_file.content()
        session.remove()


def under(program: Program, around: Callable[[], Any], count: int) -> list[float]:
    """CPU seconds of `count` steps inside a context; the first step in it is not timed."""
    with around():
        program.step()
        return program.steps(count)


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios of each variant, over interleaved rounds."""
    program, count = shape.make(), shape.steps
    program.steps(WARM_UP)
    with Counting() as counter:
        program.step()
    variants: dict[str, Callable[[], list[float]]] = {
        "untraced": lambda: program.steps(count),
        EMPTY: lambda: under(program, Empty, count),
        "DebugMode": lambda: under(program, debug_mode, count),
        BEFORE: lambda: under(program, lambda: trace(FAR, count), count),
        TRACED: lambda: under(program, lambda: trace(1, count), count),
        AFTER: lambda: program.steps(count),
    }
    if not shape.beside_debug_mode:
        del variants["DebugMode"]
    variants[TRACED]()  # the first trace imports what it needs
    medians: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, take in variants.items():
            medians[name].append(statistics.median(take()))
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
    goals = {TRACED: result["goal"], BEFORE: BEFORE_GOAL, AFTER: AFTER_GOAL}
    for variant, row in result["variants"].items():
        goal = goals.get(variant)
        # After the trace a step costs what it cost before, within its spread; of the others the median counts.
        reached = row["low"] if variant == AFTER else row["ratio"]
        verdict = "" if goal is None else f"   goal {goal:.2f} {'met' if reached <= goal else 'MISSED'}"
        print(f"  {variant:28}{row['ms']:9.1f}{row['ratio']:8.2f}   {row['low']:.2f} to {row['high']:.2f}{verdict}")
    print(flush=True)


def show_identity(asked: dict[str, float]) -> None:
    verdict = "met" if asked["microseconds"] <= asked["goal"] else "MISSED"
    print(
        f"`running += loss` asks {asked['questions']} times whose memory that is, {asked['microseconds']:.2f} µs in all"
    )
    print(f"  {'':28}goal {asked['goal']:.2f} {verdict}\n", flush=True)


GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""glibc's heap keeps freed blocks of up to 32 MB, more of them in one run than in another: so those as large as a
tensor go back to the system when they are freed, and the peak is that of what is in use."""


def peak(name: str, traced: bool) -> float:
    """MB that a process of its own needed at most for this program's first three steps."""
    words = [sys.executable, __file__, "--peak-of", name, *(["--traced"] if traced else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | GIVES_BACK)
    return float(done.stdout.split()[-1])


def print_peak(name: str, traced: bool) -> None:
    """What `peak` runs: three steps, the last two of them traced, and the most memory they needed."""
    torch.set_num_threads(1)
    program = MEMORY[name][0]()
    with trace(1, 2) if traced else contextlib.nullcontext():
        program.steps(3)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> dict[str, Any]:
    """Peak memory of each program in `MEMORY`, with and without the trace."""
    results = {}
    for name, (_, goal) in MEMORY.items():
        plain, traced = peak(name, False), peak(name, True)
        ratio = traced / plain
        results[name] = {"plain_mb": round(plain), "traced_mb": round(traced), "ratio": round(ratio, 3), "goal": goal}
        verdict = "met" if ratio <= goal else "MISSED"
        print(f"peak memory, {name}: {plain:.0f} MB, traced {traced:.0f} MB: {ratio:.2f}, goal {goal:.2f} {verdict}")
    return results


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
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", choices=[*SHAPES, "identity", "memory"], action="append", help="may be given several times"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/trace-<date>.json, and the page")
    parser.add_argument("--peak-of", choices=list(MEMORY), help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print_peak(args.peak_of, args.traced)
        return
    torch.set_num_threads(args.threads)

    found = machine()
    print(f"torch {found['torch']}, Python {found['python']}, {found['cores']} cores, {found['threads']} thread(s)\n")
    began = time.monotonic()
    results: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        if not args.only or name in args.only:
            results[name] = measure(shape, args.rounds)
            show(name, results[name])
    if not args.only or "identity" in args.only:
        results["identity"] = identity.measure(settings(1, 100))
        show_identity(results["identity"])
    if not args.only or "memory" in args.only:
        results["memory"] = memory()
    print(f"{time.monotonic() - began:.0f} s in all")
    if args.save:
        path = ROOT / "benchmarks" / "results" / f"trace-{found['date']}.json"
        path.parent.mkdir(exist_ok=True)
        saved = {"machine": found, "results": results}
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        page.write(saved)
        print(f"written: {path.relative_to(ROOT)}, {page.PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
