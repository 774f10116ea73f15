"""Merges the files of thousands of synthetic ranks of a 1,000-tensor model, one of which deviates, and finds that one.

Rank 0's file is what a real trace of such a model writes; the others are it with their own rank and figures. A second
run has ten times the Facts, each with a module of its own, as a model with many different layers has. Each merge runs
in a process of its own: its CPU seconds and peak memory are what `precaudit report FOLDER` costs, imports included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DEVIANT = 2741
"""The rank that holds its optimizer state in bfloat16."""

GOAL_SECONDS, GOAL_MEBIBYTES = 3.0, 100.0

MODEL = """
import torch
class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width) for _ in range(4))
    def forward(self, x):
        x = self.attention_norm(x)
        x = x + self.output(torch.softmax(self.query(x) @ self.key(x).mT, -1) @ self.value(x))
        return self.feed_forward_norm(x)
model = torch.nn.Sequential(*(Block(8) for _ in range(84)), torch.nn.Linear(8, 2))
assert len(list(model.parameters())) >= 1000
optimizer = torch.optim.AdamW(model.parameters())
for step in range(9):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""

MERGE = """
import resource, sys, time
from precaudit.cli import run
code = run(["report", sys.argv[1], "--output-format", "json", "--output", sys.argv[2]])
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def traced_once(folder: Path) -> dict[str, object]:
    """The rank file of a real trace of the model, which `precaudit.run` leaves below a launcher."""
    (folder / "train.py").write_text(MODEL)
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "precaudit.run", "train.py"], cwd=folder, env=environment, check=True)
    (path,) = folder.glob(".precaudit/ranks/*/rank-0-*.json")
    raw: dict[str, object] = json.loads(path.read_text())
    return raw


def write_ranks(folder: Path, first: dict[str, object], ranks: int, times: int) -> tuple[int, int]:
    """Writes the rank files with `times` the Facts; returns the size of the largest and the number of its Facts."""
    real = first["facts"]
    assert isinstance(real, list)
    facts = [{**f, "module": f"layers.{n}" if n else f["module"]} for n in range(times) for f in real]
    low = [{**f, "dtype": "bfloat16"} if f["role"] == "optimizer_state" else f for f in facts]
    size = 0
    for rank in range(ranks):
        measured = [
            {**f, "evidence": {name: value * (1 + rank / ranks) for name, value in f["evidence"].items()}}
            for f in (low if rank == DEVIANT else facts)
        ]
        text = json.dumps({**first, "rank": rank, "world_size": ranks, "pid": rank + 1, "facts": measured})
        (folder / f"rank-{rank}-{rank + 1}.json").write_text(text)
        size = max(size, len(text))
    return size, len(facts)


def measured(first: dict[str, object], ranks: int, times: int) -> dict[str, Any]:
    """One merge of so many rank files, each with `times` the Facts of a real one. Fails where the odd one is missed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "ranks").mkdir()
        size, facts = write_ranks(folder / "ranks", first, ranks, times)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", MERGE, str(folder / "ranks"), str(folder / "report.json")],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        wall = time.perf_counter() - began
        report = json.loads((folder / "report.json").read_text())
        report_size = (folder / "report.json").stat().st_size
    found = {rank for f in report["findings"] if f["rule"] == "PA505" for rank in f["ranks"]}
    assert found == {DEVIANT}, f"the deviating rank was not found: {found}"
    _, seconds, mebibytes = (float(word) for word in done.stdout.split())
    return {
        "ranks": ranks,
        "facts_per_rank": facts,
        "bytes_per_rank_file": size,
        "cpu_seconds": round(seconds, 2),
        "wall_seconds": round(wall, 2),
        "peak_mebibytes": round(mebibytes, 1),
        "report_bytes": report_size,
        "found": sorted(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--output", type=Path, help="Write the figures here as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        first = traced_once(Path(temporary))
    runs = [measured(first, options.ranks, times) for times in (1, 10)]
    figures = {
        "machine": {
            "date": datetime.date.today().isoformat(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "goal": {"cpu_seconds": GOAL_SECONDS, "peak_mebibytes": GOAL_MEBIBYTES},
        "parameters": first["coverage"]["parameters"],  # type: ignore[index]
        "runs": runs,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    sys.exit(any(r["cpu_seconds"] > GOAL_SECONDS or r["peak_mebibytes"] > GOAL_MEBIBYTES for r in runs))


if __name__ == "__main__":
    main()
