"""A sharded script under the real command: the wrap line, the ranks and the fix in the framework's own words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

dist.init_process_group("gloo")
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # after the model: too late for a guess
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
optimizer = torch.optim.AdamW(model.parameters())
for step in range(9):
    model(torch.ones(4, 8)).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.slow
def test_fully_shard_under_torchrun_is_told_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = dict(os.environ, OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [sys.executable, "-m", "precaudit", "trace", "--output", "report.json"]
    torchrun = ["torchrun", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run([*command, *torchrun], cwd=tmp_path, env=environment, capture_output=True, text=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["coverage"]["setup"]["frameworks"] == "FSDP2", done.stderr
    (found,) = report["findings"]
    assert (found["rule"], found["severity"], found["path"], found["line"]) == ("PA501", "warning", "train.py", 10)
    assert found["ranks"] == [0, 1]
    assert "MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)" in found["fix"]
    assert done.returncode == 0
