"""The launcher with the real torch and the real runtime: torchrun in front and behind, and an environment apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from desk import Desk

DDP = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4).to(torch.bfloat16))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(9):
    model(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print("the end")
"""

PLAIN = """
import importlib.util, torch
print([name for name in ("precaudit", "pydantic", "click", "rich") if importlib.util.find_spec(name)])
model = torch.nn.Linear(4, 4).to(torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
for step in range(9):
    model(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print("the end")
"""

NOISE = ("Connection closed by peer", "ChildFailedError", "Traceback", "destroy_process_group")


def test_torchrun_is_traced_from_in_front_without_a_word_from_it(real_desk: Desk) -> None:
    real_desk.write("train.py", DDP)
    traced = real_desk.precaudit("trace", "torchrun", "--nproc-per-node", "2", "train.py")
    assert traced.code == 1
    assert traced.report["coverage"]["ranks"] == 2
    state = next(f for f in traced.report["findings"] if f["rule"] == "PA301")
    assert (state["path"], state["line"], state["ranks"]) == ("train.py", 5, [0, 1])
    assert [word for word in NOISE if word in traced.stderr] == []
    assert traced.stdout == ""


def test_torchrun_is_traced_from_behind_and_judged_afterwards(real_desk: Desk) -> None:
    real_desk.write("train.py", DDP)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "precaudit.run", "train.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [word for word in NOISE if word in done.stderr] == []
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("precaudit: "))
    folder = told.rpartition(" ")[2]
    judged = real_desk.precaudit("report", folder, "--output-format", "concise")
    assert judged.code == 0
    assert "train.py:5" in judged.stdout


def test_torch_may_live_in_an_environment_that_holds_nothing_of_ours(
    real_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "elsewhere"], check=True)
    theirs = next((real_desk.folder / "elsewhere" / "lib").glob("python*/site-packages"))
    ours = {"precaudit", "pydantic", "pydantic_core", "click", "rich", "libcst"}
    for entry in Path(torch.__file__).parents[1].iterdir():
        if entry.name.partition(".")[0] not in ours and not entry.name.endswith((".pth", ".dist-info")):
            (theirs / entry.name).symlink_to(entry)
    real_desk.write("train.py", PLAIN)
    monkeypatch.delenv("PYTHONPATH")
    traced = real_desk.precaudit("trace", str(real_desk.folder / "elsewhere" / "bin" / "python"), "train.py")
    assert (traced.code, traced.stdout) == (1, "[]\n")
    assert {f["rule"] for f in traced.report["findings"]} >= {"PA101", "PA301"}
