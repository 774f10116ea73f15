"""Preflight against the real thing: the role table of a script on CUDA, and on this machine's CPU, row by row equal.

With PRECAUDIT_GPU_DEVICE=cpu only the preflight's half runs, to try these tests out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpt_steps import ON_GPU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a CUDA machine"),
]

SCRIPTS = Path(__file__).resolve().parent.parent / "preflight" / "scripts"
RUNS = [
    ("imagenet.py",),
    ("imagenet.py", "wrong"),
    ("gpt.py", "bfloat16"),
    ("gpt.py", "float16"),
    ("gpt.py", "wrong"),
    ("dcgan.py",),
    ("diffusion.py",),
    ("ddp.py",),
    ("ddp.py", "hook"),
]
SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
Table = tuple[set[tuple[str, str, int]], set[str]]


class Traced:
    """A script under a command of precaudit, begun at once, so that both halves of a comparison run side by side."""

    def __init__(self, folder: Path, port: int, command: str, *words: str, **environment: str) -> None:
        self._report = folder / f"{command}.json"
        line = [sys.executable, "-m", "precaudit", command, "--output", str(self._report), *words]
        told = {**os.environ, **SINGLE, "MASTER_PORT": str(port), **environment}
        self._process = subprocess.Popen(line, cwd=folder, env=told, stderr=subprocess.PIPE, text=True)

    def table(self) -> Table:
        """Role, dtype and number of tensors of each row, and the rules that spoke."""
        _, told = self._process.communicate(timeout=300)
        assert self._process.returncode in (0, 1), told[-3000:]
        report = json.loads(self._report.read_text())
        assert report["exit_code"] == 0, told[-3000:]
        rows = {(row["role"], row["dtype"], row["tensors"]) for row in report["roles"] if row["dtype"] is not None}
        return rows, {finding["rule"] for finding in report["findings"] if finding["severity"] != "note"}


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_script_holds_in_preflight_what_it_holds_on_cuda(
    words: tuple[str, ...], tmp_path: Path, free_port: int
) -> None:
    script = [str(SCRIPTS / words[0]), *words[1:]]
    there = Traced(tmp_path, free_port, "trace", "--eager", *script) if ON_GPU else None
    here = Traced(tmp_path, free_port + 500, "preflight", *script, CUDA_VISIBLE_DEVICES="").table()
    assert here[0]
    if there is not None:
        assert here == there.table()
