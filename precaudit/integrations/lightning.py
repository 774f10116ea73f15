"""A callback for Lightning's Trainer: the first steps are audited, the training goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the older package of the same project
    from pytorch_lightning.callbacks import Callback  # type: ignore[import-not-found, no-redef, unused-ignore]

from precaudit.api.audit import Audit
from precaudit.integrations.logs import beside, numbers, words


def _tensorboard(logger: Any, told: Mapping[str, str]) -> None:
    for name, word in told.items():
        logger.experiment.add_text(name, word, 0)


def _wandb(logger: Any, told: Mapping[str, str]) -> None:
    logger.experiment.summary.update(told)


def _mlflow(logger: Any, told: Mapping[str, str]) -> None:
    for name, word in told.items():
        logger.experiment.set_tag(logger.run_id, name, word)


WORDS: Mapping[str, Callable[[Any, Mapping[str, str]], None]] = {
    "TensorBoardLogger": _tensorboard,
    "WandbLogger": _wandb,
    "MLFlowLogger": _mlflow,
}
"""Logger -> how it is told words, which its `log_metrics` does not take."""


class PrecauditCallback(Callback):  # type: ignore[misc]
    """Audits a few steps at the beginning of `trainer.fit()`.

        trainer = Trainer(..., callbacks=[PrecauditCallback()])

    Once the steps are seen every hook is gone. The report is kept in `report`, printed on stderr by the first rank
    where it has errors or warnings, and goes to the Trainer's loggers: numbers (`precision/errors`, …) as metrics,
    words (`precision/optimizer_state`, …) as texts of TensorBoard, into wandb's summary, as tags of MLflow.

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
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            beside(type(logger).__name__, partial(_log, logger, run, trainer.global_step))
        if run.findings:
            print(run, file=sys.stderr)


def _log(logger: Any, run: Audit, step: int) -> None:
    """Numbers as metrics of this step, words where the logger has a place for them."""
    values = run.flat()
    logger.log_metrics(numbers(values), step=step)
    for kind in type(logger).__mro__:
        if kind.__name__ in WORDS:
            WORDS[kind.__name__](logger, words(values))
