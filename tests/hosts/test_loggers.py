"""The code of docs/trainers.md in real Trainers: the report is read back from the loggers that they have set up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import readers

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
NET = """
import torch
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2).bfloat16()
    def forward(self, x, labels=None):
        out = self.layer(x.bfloat16()).float()
        return out if labels is None else {"loss": torch.nn.functional.mse_loss(out, labels)}
model = Net()
"""
BEFORE = {
    "transformers": NET + "rows = [{'x': torch.randn(8), 'labels': torch.ones(2)} for _ in range(64)]\n",
    "lightning": NET
    + """
import lightning
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = model
    def training_step(self, batch, _):
        return self.net(*batch)["loss"]
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())
module = Module()
batches = torch.utils.data.DataLoader([(torch.randn(8), torch.ones(2)) for _ in range(64)], batch_size=8)
logger = [TensorBoardLogger("out"), WandbLogger(offline=True), MLFlowLogger("mine"), CSVLogger("out")]
""",
    "accelerate": NET
    + """
optimizer = torch.optim.AdamW(model.parameters())
batches = torch.utils.data.DataLoader([(torch.randn(8), torch.ones(2)) for _ in range(64)], batch_size=8)
""",
}
ALL = '["tensorboard", "wandb", "mlflow", "trackio"]'


@pytest.fixture(params=list(BEFORE))
def trained(request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Which trainer ran the page's code in `tmp_path`, under all loggers at once; and what it printed on stderr."""
    host = request.param
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if f"s.{host} " in b]
    logged = re.sub(r'(report_to|log_with)="tensorboard"', rf"\1={ALL}", block)
    assert (logged != block) == (host != "lightning")
    script = BEFORE[host] + logged
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "precaudit:" not in done.stderr
    return host, done.stderr


def test_the_report_lands_in_the_loggers_that_are_set_up(
    trained: tuple[str, str], tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    host, printed = trained
    assert "PA301" in printed
    words = {"precision/status": "findings", "precision/optimizer_state": "bfloat16"}
    kept: dict[str, dict[str, Any]] = {}
    # One folder of TensorBoard, which the training's own values are in too.
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    kept["tensorboard"] = readers.tensorboard_values(folder)
    (kept["wandb"],) = readers.summaries(tmp_path)
    (run,) = readers.mlflow_runs(environment)
    kept["mlflow"] = {**run.data.metrics, **run.data.tags}
    if host != "lightning":
        rows = readers.trackio_rows(environment, "mine" if host == "accelerate" else "huggingface")
        kept["trackio"] = {name: value for row in rows for name, value in row.items()}
    else:
        (file,) = tmp_path.rglob("metrics.csv")
        assert "precision/errors" in file.read_text(encoding="utf-8")
    for name, values in kept.items():
        assert values.items() >= words.items(), name
        assert values["precision/errors"] >= 1, name
