"""A callback for Lightning's Trainer: the first steps are audited, the training goes on."""

from __future__ import annotations

import sys
from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the older package of the same project
    from pytorch_lightning.callbacks import Callback  # type: ignore[import-not-found, no-redef, unused-ignore]

from precaudit.api.audit import Audit


class PrecauditCallback(Callback):  # type: ignore[misc]
    """Audits a few steps at the beginning of `trainer.fit()`.

        trainer = Trainer(..., callbacks=[PrecauditCallback()])

    Once the steps are seen every hook is gone. The report is kept in `report`, printed on stderr by the first rank
    where it has errors or warnings, and its numbers go to the Trainer's loggers (`precision/errors`, …).

    Args:
        steps: optimizer steps to watch.
        skip: optimizer steps to let pass before them.
    """

    def __init__(self, steps: int = 2, skip: int = 1) -> None:
        self.steps, self.skip = steps, skip
        self.audit: Audit | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.audit = Audit(pl_module, list(trainer.optimizers), steps=self.steps, skip=self.skip)
        self.audit.begin()

    def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
        if self.audit is not None and self.audit.over:
            self._tell(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._tell(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._tell(trainer, exception)

    def _tell(self, trainer: Any, error: BaseException | None = None) -> None:
        run, self.audit = self.audit, None
        if run is None:
            return
        self.report = run.end(error)
        numbers = {name: float(value) for name, value in run.flat().items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        if trainer.is_global_zero and run.findings:
            print(run, file=sys.stderr)
