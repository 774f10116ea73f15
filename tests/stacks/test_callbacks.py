"""PrecauditCallback in transformers and Lightning, PrecauditHook in accelerate: audited, told, trained as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    """Also of accelerate, which refuses another precision than the first one in a process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    with harness.unchanged_world():
        yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


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


def accelerated(
    steps: int, *, accumulate: int = 1, hooked: bool = True, end: bool = True, dtype: Any = None
) -> tuple[Any, list[float]]:
    """The hook of a bare accelerate loop, and the parameters it arrived at."""
    from accelerate import Accelerator

    from precaudit.integrations.accelerate import PrecauditHook

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=accumulate)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2)).to(dtype)
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(steps * accumulate, 8)))
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, rows = accelerator.prepare(model, optimizer, rows)
    hook = PrecauditHook(accelerator) if hooked else None
    for (x,) in rows:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    if end:
        accelerator.end_training()
        assert not {"backward", "end_training"} & vars(accelerator).keys()
    return hook, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_bare_accelerate_loop_is_audited_and_learns_the_same(accumulate: int) -> None:
    hook, learnt = accelerated(5, accumulate=accumulate)
    assert hook.report.status == "clean"
    assert hook.report.coverage.traced_steps == [2, 3]
    assert hook.report.coverage.micro_batches == 2 * accumulate
    assert learnt == accelerated(5, accumulate=accumulate, hooked=False)[1]


def test_an_accelerate_loop_that_ends_at_once_is_told_at_its_end() -> None:
    assert accelerated(3)[0].report.status == "clean"  # no backward came after the watched steps
    short = accelerated(2)[0].report
    assert short.status == "inconclusive"
    assert any("1 of 2 steps were watched" in note for note in short.coverage.notes)


def test_a_hook_before_prepare_says_so() -> None:
    from accelerate import Accelerator

    from precaudit.errors import UsageError
    from precaudit.integrations.accelerate import PrecauditHook

    with pytest.raises(UsageError) as told:
        PrecauditHook(Accelerator(cpu=True))
    assert str(told.value) == (
        "PrecauditHook: no optimizer was prepared yet; make the hook after accelerator.prepare()"
    )


def test_a_loop_that_never_says_that_it_ends_is_told_as_the_process_does() -> None:
    code = "import test_callbacks as t\nt.accelerated(3, end=False, dtype=t.torch.bfloat16)\n"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PA301" in done.stderr
