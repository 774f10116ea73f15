"""Reports in real trackers, offline, read back by each tracker's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import readers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch, precaudit
{before}
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)).to(torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters())
with precaudit.audit(model, optimizer) as run:
    for _ in range(2):
        model(torch.randn(8, 16).bfloat16()).float().square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
run.log("{name}")
{after}
"""
WORDS = {"precision/status": "findings", "precision/optimizer_state": "bfloat16"}


def run(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def audited(folder: Path, environment: dict[str, str], name: str, before: str = "", after: str = "") -> str:
    """The output of a script that logs an audit, between what it does before and after."""
    (folder / "train.py").write_text(SCRIPT.format(name=name, before=before, after=after), encoding="utf-8")
    done = run(folder, environment, "train.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


def traced(folder: Path, environment: dict[str, str], name: str) -> None:
    done = run(
        folder, environment, "-m", "precaudit", "trace", "--log", name, str(ROOT / "fixtures/scripts/gpt_bf16_adamw.py")
    )
    assert done.returncode == 1, done.stderr
    assert f"--log {name}" not in done.stderr


def test_wandb_offline_keeps_the_values_of_the_active_run_and_its_steps(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    before = "import wandb; active = wandb.init(project='mine'); active.log({'loss': 1.0})"
    after = (
        "active.log({'loss': 0.5}); print(active.summary['precision/optimizer_state'], active.step); active.finish()"
    )
    assert audited(tmp_path, environment, "wandb", before, after).split() == ["bfloat16", "2"]
    (values,) = readers.summaries(tmp_path)
    assert values["loss"] == 0.5
    assert values.items() >= WORDS.items()


def test_wandb_offline_gets_a_run_of_its_own_from_a_trace(tmp_path: Path, environment: dict[str, str]) -> None:
    traced(tmp_path, environment, "wandb")
    (values,) = readers.summaries(tmp_path)
    assert values.items() >= WORDS.items()
    assert values["precision/errors"] == 2


def test_mlflow_s_file_store_keeps_metrics_and_tags(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = "import mlflow; mlflow.set_experiment('mine'); mlflow.start_run()"
    after = "run.log('mlflow'); mlflow.log_metric('loss', 0.5); mlflow.end_run()"
    audited(tmp_path, environment, "mlflow", before, after)
    (kept,) = readers.mlflow_runs(environment)
    assert kept.data.metrics["loss"] == 0.5
    assert kept.data.metrics["precision/errors"] >= 1
    assert kept.data.tags.items() >= WORDS.items()
    traced(tmp_path, environment, "mlflow:other")
    assert len(readers.mlflow_runs(environment)) == 2


def kept(folder: Path) -> dict[str, Any]:
    values = readers.tensorboard_values(folder)
    assert values.items() >= WORDS.items()
    return values


def test_tensorboard_reads_what_a_trace_and_an_audit_wrote(tmp_path: Path, environment: dict[str, str]) -> None:
    audited(tmp_path, environment, "tensorboard:logs/mine")
    assert kept(tmp_path / "logs" / "mine")["precision/errors"] >= 1
    traced(tmp_path, environment, "tensorboard")
    assert kept(tmp_path / "runs" / "precaudit")["precision/errors"] == 2


def test_trackio_keeps_the_values(tmp_path: Path, environment: dict[str, str]) -> None:
    traced(tmp_path, environment, "trackio:mine")
    (values,) = readers.trackio_rows(environment, "mine")
    assert values.items() >= WORDS.items()


def test_a_jsonl_file_gets_one_line_for_each_run(tmp_path: Path, environment: dict[str, str]) -> None:
    traced(tmp_path, environment, "jsonl:log.jsonl")
    done = run(tmp_path, environment, "-m", "precaudit", "report", "--log", "jsonl:log.jsonl")
    assert done.returncode == 0
    one, other = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert one == other
    assert one.items() >= WORDS.items()


def test_only_rank_0_sends(tmp_path: Path, environment: dict[str, str]) -> None:
    audited(tmp_path, environment | {"RANK": "1"}, "jsonl:log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_tracker_that_refuses_is_one_line_and_the_report_is_kept(tmp_path: Path, environment: dict[str, str]) -> None:
    script = str(ROOT / "fixtures/scripts/gpt_bf16_adamw.py")
    done = run(tmp_path, environment, "-m", "precaudit", "trace", "--log", "jsonl:no/such/log.jsonl", script)
    assert done.stderr.splitlines()[-1] == (
        "precaudit: --log jsonl: [Errno 2] No such file or directory: 'no/such/log.jsonl'; the report itself is kept"
    )
    assert "PA301" in done.stderr
    assert (tmp_path / ".precaudit" / "latest" / "report.json").is_file()
