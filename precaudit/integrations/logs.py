"""Sends a report's names and values to an experiment tracker: into the run that is active, else into one of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precaudit import disk
from precaudit.errors import OutputError, UsageError
from precaudit.report.flat import Flat, flat

if TYPE_CHECKING:
    from precaudit.model.wire import Report

DEFAULT = "precaudit"
"""The project, experiment or run in which a report is kept where none is active and none is named."""


def check(name: str) -> str:
    """The destination as it was given, `wandb` or `wandb:my-project`. Raises UsageError for a tracker not known."""
    if name.partition(":")[0] not in LOGS:
        raise UsageError(
            f"--log: '{name}' is no tracker; allowed: {', '.join(LOGS)}, or with a place, wandb:my-project"
        )
    return name


def log(report: Report, destination: str) -> None:
    """Sends what `precaudit report --output-format flat` shows; a process that is not rank 0 sends nothing.

    Raises UsageError for a tracker that is not known, or not installed here, OutputError where it refuses.
    """
    name, _, where = check(destination).partition(":")
    if not _first():
        return
    try:
        LOGS[name](flat(report), where)
    except ImportError as error:
        raise UsageError(
            f"--log {name}: {error}; install it into the environment of precaudit ({sys.executable})"
        ) from None
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"--log {name}: {told[:300]}; the report itself is kept") from error


def beside(name: str, send: Callable[[], object]) -> None:
    """Sends to a tracker that a training has set up: where that fails it is one line, and the training goes on."""
    try:
        send()
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        print(f"precaudit: {name}: {told[:300]}", file=sys.stderr)


def _first() -> bool:
    """Whether this process is rank 0, or no rank at all."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def numbers(values: Flat) -> dict[str, float]:
    return {name: value for name, value in values.items() if not isinstance(value, str)}


def words(values: Flat) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _wandb(values: Flat, project: str) -> None:
    """Into the run's summary: no step of the training's own is touched. WANDB_RUN_ID and WANDB_MODE hold."""
    import wandb

    active = wandb.run
    run = active or wandb.init(project=project or os.environ.get("WANDB_PROJECT") or DEFAULT, resume="allow")
    run.summary.update(values)
    if active is None:
        run.finish()


def _mlflow(values: Flat, experiment: str) -> None:
    """Numbers as metrics, words as tags, which unlike params may be written again. MLFLOW_RUN_ID holds."""
    import mlflow

    active = mlflow.active_run()
    if active is None:
        if experiment or not os.environ.get("MLFLOW_RUN_ID"):
            mlflow.set_experiment(experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT)
        mlflow.start_run()
    try:
        mlflow.log_metrics(numbers(values))
        mlflow.set_tags(words(values))
    finally:
        if active is None:
            mlflow.end_run()


def _tensorboard(values: Flat, folder: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder or os.path.join("runs", DEFAULT)) as writer:
        for name, number in numbers(values).items():
            writer.add_scalar(name, number, 0)
        for name, word in words(values).items():
            writer.add_text(name, word, 0)


def _trackio(values: Flat, project: str) -> None:
    import trackio
    from trackio import context_vars

    active: Any = context_vars.current_run.get()
    if active is None:
        trackio.init(project=project or DEFAULT, embed=False)
    trackio.log(dict(values))
    if active is None:
        trackio.finish()


def _jsonl(values: Flat, file: str) -> None:
    """One line more in a file."""
    disk.append_named(Path(file or f"{DEFAULT}.jsonl"), json.dumps(values))


LOGS: Mapping[str, Callable[[Flat, str], None]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "jsonl": _jsonl,
}
"""Tracker -> what sends to it; after a colon the project, experiment, folder or file."""
