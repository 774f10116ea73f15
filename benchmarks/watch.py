"""Prints what a step costs once the window of a watched run is over, beside the same step of an unwatched one.

One process takes a stretch of steps plainly and one under `precaudit watch`'s session, past its window, by turns. The
difference of median CPU times is microseconds per step, whatever the step does; from it follow the ratios for steps of
several sizes, with the window itself and the looks between windows added.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from precaudit.runtime import session as runtime  # noqa: E402
from precaudit.runtime.watchers.sentinels import SHARE  # noqa: E402

WINDOW = 8
"""Steps after which the window is over, and what begins with it."""
GOAL = 1.005
LOOKS = 2 / SHARE
"""What looks at dtypes and glances at weights take of a run, by the pauses that follow them."""


def program(width: int) -> Callable[[], None]:
    """One step of an MLP of three layers under AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = torch.randn(128, width), torch.randint(0, 10, (128,))

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def taken(step: Callable[[], None], count: int) -> list[float]:
    """CPU seconds of each of so many steps."""
    times = []
    for _ in range(count):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    return times


def watched(width: int, count: int) -> tuple[list[float], float]:
    """(CPU seconds of the steps after the window, those of all steps until then)."""
    session = runtime.start({"keep_going": True, "looks_on": True, "ranks_folder": None, "cwd": os.getcwd()})
    try:
        step = program(width)
        window = sum(taken(step, WINDOW))
        return taken(step, count), window
    finally:
        session.remove()


def plain(width: int, count: int) -> list[float]:
    step = program(width)
    taken(step, WINDOW)
    return taken(step, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    watched(chosen.width, 10)
    plains, extra, windows = [], [], []
    for _ in range(chosen.rounds):
        without = statistics.median(plain(chosen.width, chosen.steps))
        times, window = watched(chosen.width, chosen.steps)
        again = statistics.median(plain(chosen.width, chosen.steps))
        plains += [without, again]
        extra.append(statistics.median(times) - (without + again) / 2)
        windows.append(window)
    step, more, window = statistics.median(plains), statistics.median(extra), statistics.median(windows)
    spread = sorted(extra)
    print(f"a step of width {chosen.width}: {step * 1e6:.0f} µs of CPU time, unwatched")
    print(
        f"watched: {more * 1e6:+.1f} µs more, rounds from {spread[0] * 1e6:+.1f} to {spread[-1] * 1e6:+.1f}; "
        f"the window and what begins with it: {window * 1e3:.0f} ms"
    )
    for size in (0.003, 0.01, 0.03, 0.1, 0.3):
        ratio = 1 + (more * 10_000 + window) / (size * 10_000) + LOOKS
        verdict = "met" if ratio <= GOAL else "MISSED"
        print(f"  10,000 steps of {size * 1e3:g} ms: {ratio:.4f}, goal {GOAL} {verdict}")


if __name__ == "__main__":
    main()
