"""A callback for transformers' Trainer, and for TRL's trainers: the first steps are audited, the training goes on."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from precaudit.api.audit import Audit
from precaudit.integrations.logs import DEFAULT, LOGS, beside


class PrecauditCallback(TrainerCallback):  # type: ignore[misc]
    """Audits a few steps at the beginning of `trainer.train()`.

        trainer = Trainer(..., callbacks=[PrecauditCallback()])

    Once the steps are seen every hook is gone. The report is kept in `report`, written to `precision.json` in the
    Trainer's output_dir by the first rank, and printed on stderr where it has errors or warnings. Flat values such as
    `precision/optimizer_state` stand in the state's log history, and go to the trackers of `report_to`.

    Args:
        steps: optimizer steps to watch.
        skip: optimizer steps to let pass before them.
    """

    def __init__(self, steps: int = 2, skip: int = 1) -> None:
        self.steps, self.skip = steps, skip
        self.audit: Audit | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.audit = Audit(given.get("model"), given.get("optimizer"), steps=self.steps, skip=self.skip)
        self.audit.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.audit is not None and self.audit.over:
            self._tell(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._tell(args, state)

    def _tell(self, args: Any, state: Any) -> None:
        run, self.audit = self.audit, None
        if run is None:
            return
        self.report = run.end()
        state.log_history.append({**run.flat(), "step": state.global_step})
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            run.save(folder / "precision.json")
            for name in sorted({*args.report_to} & LOGS.keys()):
                beside(name, partial(run.log, f"{name}:{_scalars(folder)}" if name == "tensorboard" else name))
            if run.findings:
                print(run, file=sys.stderr)


def _scalars(folder: Path) -> Path:
    """Where the Trainer's TensorBoardCallback writes: files that name this process, in a folder named by the time."""
    if own := os.environ.get("TENSORBOARD_LOGGING_DIR"):
        return Path(own).expanduser()
    written = sorted(
        folder.glob(f"runs/*/events.out.tfevents.*.{os.getpid()}.*"), key=lambda file: file.stat().st_mtime
    )
    return written[-1].parent if written else folder / "runs" / DEFAULT
