"""Preflight against the real thing: the role table of a script on CUDA, and on this machine's CPU, row by row equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA machine"),
]

SCRIPTS = Path(__file__).resolve().parent.parent / "preflight" / "scripts"
RUNS = [
    ("imagenet.py",),
    ("imagenet.py", "wrong"),
    ("gpt.py", "bfloat16"),
    ("gpt.py", "float16"),
    ("gpt.py", "wrong"),
    ("dcgan.py",),
    ("ddp.py",),
    ("ddp.py", "hook"),
]
SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "21473"}


def table(folder: Path, environment: dict[str, str], *words: str) -> tuple[set[tuple[str, str, int]], set[str]]:
    """Role, dtype and number of tensors of each row, and the rules that spoke."""
    command = [sys.executable, "-m", "precaudit", *words[:1], "--output", "report.json", *words[1:]]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **SINGLE, **environment}
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["exit_code"] == 0, done.stderr[-3000:]
    rows = {(row["role"], row["dtype"], row["tensors"]) for row in report["roles"] if row["dtype"] is not None}
    return rows, {finding["rule"] for finding in report["findings"] if finding["severity"] != "note"}


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_script_holds_in_preflight_what_it_holds_on_cuda(words: tuple[str, ...], tmp_path: Path) -> None:
    script = [str(SCRIPTS / words[0]), *words[1:]]
    on_cuda = table(tmp_path, {}, "trace", "--eager", *script)
    here = table(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}, "preflight", *script)
    assert here == on_cuda
