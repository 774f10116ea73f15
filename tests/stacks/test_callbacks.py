"""PrecauditCallback in transformers' Trainer and in Lightning's: audited, told, and trained as without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    with harness.unchanged_world():
        yield


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + 8) % 300
        return {"input_ids": ids, "labels": ids}


def trainer(llama: Path, folder: Path, dtype: torch.dtype, *callbacks: Any) -> Any:
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=2, disable_tqdm=True, seed=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype)
    return Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks))


def test_the_trainer_s_first_steps_are_audited_and_the_rest_runs_on(llama: Path, tmp_path: Path) -> None:
    from precaudit.integrations.transformers import PrecauditCallback

    callback = PrecauditCallback()
    audited = trainer(llama, tmp_path, torch.bfloat16, callback)
    audited.train()
    assert audited.state.global_step == 6
    assert {f.rule for f in callback.report.findings if f.severity.value == "error"} >= {"PA101", "PA301"}
    assert callback.report.coverage.traced_steps == [2, 3]
    assert json.loads((tmp_path / "precision.json").read_text(encoding="utf-8"))["status"] == "findings"
    (told,) = [row for row in audited.state.log_history if "precision/status" in row]
    assert told["precision/optimizer_state"] == "bfloat16"
    assert told["step"] == 3


def test_the_trainer_learns_the_same_with_the_callback(llama: Path, tmp_path: Path) -> None:
    from precaudit.integrations.transformers import PrecauditCallback

    alone = trainer(llama, tmp_path / "alone", torch.float32)
    alone.train()
    callback = PrecauditCallback()
    audited = trainer(llama, tmp_path / "audited", torch.float32, callback)
    audited.train()
    assert callback.report.status == "clean"
    for one, other in zip(alone.model.parameters(), audited.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_lightning_s_first_steps_are_audited_and_its_logger_is_told(tmp_path: Path) -> None:
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    from precaudit.integrations.lightning import PrecauditCallback

    class Small(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 2)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.layer(batch[0].to(self.dtype)).float().square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    callback = PrecauditCallback()
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(24, 8)), batch_size=4)
    logger = CSVLogger(tmp_path)
    fit = lightning.Trainer(
        accelerator="cpu", precision="bf16-true", max_epochs=1, callbacks=[callback], logger=logger,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fit.fit(Small(), rows)
    assert fit.global_step == 6
    assert "PA301" in {f.rule for f in callback.report.findings}
    assert callback.report.coverage.traced_steps == [2, 3]
    written = (Path(logger.log_dir) / "metrics.csv").read_text(encoding="utf-8")
    assert "precision/errors" in written
