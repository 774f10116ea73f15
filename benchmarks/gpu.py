"""Runs `tests/gpu` on a CUDA machine, then times what a trace costs there: the one command of `make gpu`.

    .venv-gpu/bin/python benchmarks/gpu.py [--device cpu] [--no-tests] [--seconds 600] [--folder benchmarks/results]

Each recipe of `tests/gpu/gpt_steps.py` trains in a process of its own: plain, traced, and with the exact step. A step's
time is the clock's between two synchronizations of the device; memory is what torch had allocated there at most.
Writes gpu-DATE.json: the machine, the versions, each test's outcome, each recipe's figures. With `--device cpu` the CPU
stands in at small sizes, so that the command can be tried out; nothing is kept then unless a folder is named.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ROOT / "tests" / "gpu"
SMALL = {"LAYERS": 2, "WIDTH": 128, "LENGTH": 64, "BATCH": 2, "WORDS": 512}
"""The GPT's sizes where the CPU stands in."""
SECONDS = 570
"""What the whole command may take, of the ten minutes that it is promised in."""
FOR_TESTS = 0.65
"""The part of it after which tests that have not ended are stopped."""
MODES: dict[str, dict[str, Any]] = {"plain": {}, "traced": {}, "exact": {"exact": True}}


def environment(device: str) -> dict[str, str]:
    """What a child process is told; sizes that are set already stay."""
    told = {**os.environ, "PRECAUDIT_GPU_DEVICE": device, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if device == "cpu":
        told |= {f"PRECAUDIT_GPU_{name}": str(size) for name, size in SMALL.items()} | {
            name: size for name, size in os.environ.items() if name.startswith("PRECAUDIT_GPU_") and name[14:] in SMALL
        }
    return told


def outcomes(device: str, seconds: float) -> dict[str, Any]:
    """Each test of `tests/gpu`: passed, failed or skipped, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-p",
            "no:cacheprovider",
            f"--junitxml={log}",
            str(TESTS),
        ]
        running = subprocess.Popen(command, cwd=ROOT, env=environment(device))
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # it then tells of those that have ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(30)
            running.kill()
        if not log.exists():
            return {"all": {"outcome": "not ended", "seconds": round(seconds)}}
        cases = list(xml.etree.ElementTree.parse(log).iter("testcase"))
    found = {}
    for case in cases:
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}[kinds[0]] if kinds else "passed"
        found[str(case.get("name"))] = {"outcome": outcome, "seconds": round(float(case.get("time", 0)), 1)}
    return found


def measured(name: str) -> dict[str, Any]:
    """What one recipe costs: run by a child process."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(TESTS)]
    import gpt_steps
    import harness
    import torch

    torch.set_num_threads(1)  # as the harness has it for the traced runs
    torch.use_deterministic_algorithms(True, warn_only=True)
    recipe, runs, reports = gpt_steps.RECIPES[name], {}, {}
    around = gpt_steps.one_rank if recipe.alone else contextlib.nullcontext
    with tempfile.TemporaryDirectory() as folder:
        for mode, settings in MODES.items():
            run = runs[mode] = gpt_steps.Run()
            gpt_steps.fresh()
            with around(Path(folder)):
                if mode == "plain":
                    gpt_steps.train(recipe, run)
                else:
                    reports[mode] = harness.trace_call(lambda run=run: gpt_steps.train(recipe, run), **settings)
            run.parameters, run.states, run.gradients = [], [], []
    plain = runs["plain"]
    seen = gpt_steps.cost(plain, runs["traced"])
    exact = reports["exact"].exact
    return {
        "plain_ms": round(seen.plain * 1e3, 2),
        "traced_ratio": round(seen.traced, 3),
        "after_ratio": round(seen.after, 3),
        "exact_ratio": round(gpt_steps.cost(plain, runs["exact"]).traced, 3),
        "exact_step_measured": exact is not None,
        "peak_gib": {mode: round(run.peak / 2**30, 3) for mode, run in runs.items()},
        "losses_equal": all(run.losses == plain.losses for run in runs.values()),
        "loud": sorted(harness.loud(reports["traced"])),
        "roles": sorted({f"{row.role}: {row.dtype}" for row in reports["traced"].roles if row.dtype is not None}),
    }


def child(name: str, device: str, seconds: float) -> dict[str, Any]:
    """One recipe's figures, or why there are none."""
    if seconds < 15:
        return {"failed": "the time was up"}
    command = [sys.executable, __file__, "--child", name]
    try:
        done = subprocess.run(
            command, env=environment(device), capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not ended after {seconds:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    told = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        told |= {"name": about.name, "memory": about.total_memory, "capability": f"{about.major}.{about.minor}"}
    return told


def show(name: str, row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"{name}: no figures: {row['failed']}", flush=True)
        return
    peak = row["peak_gib"]
    print(
        f"{name}: step {row['plain_ms']:.1f} ms, traced x{row['traced_ratio']:.2f}, exact x{row['exact_ratio']:.2f}, "
        f"after the trace x{row['after_ratio']:.3f}; peak {peak['plain']:.2f} GiB, traced {peak['traced']:.2f}, "
        f"exact {peak['exact']:.2f}; losses {'equal' if row['losses_equal'] else 'NOT EQUAL'}",
        flush=True,
    )


def names() -> list[str]:
    """The recipes."""
    sys.path.insert(0, str(TESTS))
    import gpt_steps

    return list(gpt_steps.RECIPES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-tests", action="store_true", help="the figures alone")
    parser.add_argument("--only", choices=names(), action="append", help="may be given several times")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what the whole command may take")
    parser.add_argument("--folder", type=Path, help="where gpu-DATE.json is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child)))
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"benchmarks/gpu.py: torch {torch.__version__} of {sys.executable} sees no CUDA device; run it where one "
              "is, or try the command out with --device cpu", file=sys.stderr)  # fmt: skip
        return 2
    began = time.monotonic()
    tests = {} if args.no_tests else outcomes(args.device, args.seconds * FOR_TESTS)
    rows = {}
    for name in args.only or names():
        rows[name] = child(name, args.device, args.seconds - (time.monotonic() - began))
        show(name, rows[name])
    taken = time.monotonic() - began
    print(f"{taken:.0f} s in all")
    folder = args.folder or (RESULTS if args.device == "cuda" else None)
    if folder is not None:
        about = machine(args.device)
        told = {"machine": about, "seconds": round(taken), "tests": tests, "results": rows}
        path = folder / f"gpu-{about['date']}.json"
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
    bad = [name for name, one in tests.items() if one["outcome"] not in ("passed", "skipped")]
    bad += [name for name, row in rows.items() if "failed" in row or not row["losses_equal"]]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
