"""Prints what the exact step costs: its CPU time over that of a plain step, and its peak memory over a plain run's.

Each row is a process of its own with one thread: a plain run of a few steps, the same under the trace, the same with
`--exact`. Times are medians over rounds of this process's CPU time; memory is what the peak grew by after the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from precaudit.runtime import session as runtime  # noqa: E402

SETTINGS = {
    "skip": 1,
    "steps": 2,
    "attempts": 25,
    "keep_going": True,
    "values": "sample",
    "cwd": ".",
    "ranks_folder": None,
}
SHAPES = {"launch-bound": (32, 12, 16), "compute-bound": (1024, 4, 2048)}
"""Name -> width, layers, rows of a batch."""
GOALS = {"launch-bound": 12.0, "compute-bound": 8.0}
MEMORY_GOAL = 5.0
STEPS = 5


def steps(shape: str, dtype: torch.dtype, mode: str) -> list[float]:
    """CPU seconds of each step of a run: "plain", "traced" or "exact"; the second is the exact one."""
    width, layers, rows = SHAPES[shape]
    torch.manual_seed(0)
    session = runtime.start({**SETTINGS, "exact": mode == "exact"}) if mode != "plain" else None
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.LayerNorm(width), nn.GELU())]
    net = nn.Sequential(*parts, nn.Linear(width, 8)).to(dtype)
    batch, optimizer, taken = torch.randn(rows, width).to(dtype), torch.optim.AdamW(net.parameters()), []
    for _ in range(STEPS):
        begun = time.process_time()
        net(batch).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - begun)
    if session is not None:
        session.remove()
    return taken


def measured(shape: str, dtype: str, mode: str, rounds: int) -> dict[str, Any]:
    """What one process measures."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs = [steps(shape, getattr(torch, dtype), mode) for _ in range(rounds)]
    second = [run[1] if mode != "plain" else statistics.median(run[1:]) for run in runs]
    return {
        "seconds": statistics.median(second),
        "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    }


def child(shape: str, dtype: str, mode: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", shape, dtype, mode, "--rounds", str(rounds)]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(*given.child, given.rounds)))
        return
    print(f"{'step':30} {'traced':>8} {'exact':>8} {'goal':>6} {'memory':>8} {'goal':>6}")
    for shape, goal in GOALS.items():
        for dtype in ("float32", "bfloat16"):
            rounds = given.rounds if shape == "launch-bound" else 2
            plain, traced, exact = (child(shape, dtype, mode, rounds) for mode in ("plain", "traced", "exact"))
            cost = [one["seconds"] / plain["seconds"] for one in (traced, exact)]
            memory = exact["kilobytes"] / max(plain["kilobytes"], 1)
            row = f"{shape + ', ' + dtype:30} {cost[0]:7.1f}x {cost[1]:7.1f}x {goal:5.0f}x"
            print(row + (f" {memory:7.1f}x {MEMORY_GOAL:5.0f}x" if shape == "compute-bound" else ""))


if __name__ == "__main__":
    main()
