"""--log is refused before anything runs where its tracker is not known, and says what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_audit import build, train

from precaudit.errors import UsageError
from precaudit.integrations import logs
from tests.report import samples


def test_an_unknown_tracker_is_refused_before_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("open('ran', 'w')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "trace", "--log", "wandbb", "train.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "precaudit: --log: 'wandbb' is no tracker; allowed: wandb, mlflow, tensorboard, trackio, jsonl, "
        "or with a place, wandb:my-project\n"
    )
    assert not (tmp_path / "ran").exists()


def test_a_tracker_that_is_not_installed_names_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"^--log wandb: .*wandb.*; install it into the environment of precaudit \("):
        logs.log(samples.trace(), "wandb")


def test_the_code_of_the_page_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    model, optimizer = build(torch.float32)
    exec(compile(block, "trackers.md", "exec"), {"model": model, "optimizer": optimizer, "train": train})
    (line,) = (tmp_path / "precaudit.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["precision/optimizer_state"] == "float32"
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(logs.LOGS)
