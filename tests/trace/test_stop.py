"""Stopping a traced command runs none of its own clean-up on a model cut short, and `--keep-going` runs all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import atexit
import torch
from torch import nn

atexit.register(lambda: print("atexit ran"))
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
try:
    for step in range(12):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}")
except BaseException as error:
    print("except ran", type(error).__name__)
    raise
finally:
    torch.save(model.state_dict(), "last.pt")
print("the end")
"""


def trace(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """`precaudit trace [options] train.py` in this folder, with a last.pt of an earlier run beside the script."""
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "last.pt").write_bytes(b"a good checkpoint of an earlier run")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "trace", "--output", "report.json", *options, "train.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_stopped_trace_leaves_the_checkpoint_of_a_finally_block_untouched(tmp_path: Path) -> None:
    done, report = trace(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == b"a good checkpoint of an earlier run"
    assert "step 1" in done.stdout
    for word in ("except ran", "atexit ran", "the end", "step 9"):
        assert word not in done.stdout
    assert (done.returncode, report["status"]) == (0, "clean")


def test_command_that_keeps_going_writes_its_own_checkpoint(tmp_path: Path) -> None:
    done, report = trace(tmp_path, "--keep-going")
    assert (tmp_path / "last.pt").read_bytes()[:2] == b"PK"
    assert done.stdout.splitlines() == [*(f"step {n}" for n in range(12)), "the end", "atexit ran"]
    assert (done.returncode, report["status"]) == (0, "clean")
