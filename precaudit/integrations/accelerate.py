"""A hook for bare accelerate loops: the first steps are audited, the loop goes on."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from precaudit.api.audit import Audit
from precaudit.errors import UsageError
from precaudit.integrations.logs import LOGS, beside


class PrecauditHook:
    """Audits a few steps at the beginning of a loop that calls `accelerator.backward()`.

        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
        hook = PrecauditHook(accelerator)

    Once the steps are seen every hook is gone. At the next `accelerator.backward()`, else at
    `accelerator.end_training()` or as the process ends, the report is kept in `report`, sent to the Accelerator's
    trackers, and printed on stderr by the main process where it has errors or warnings.

    Args:
        accelerator: an Accelerator that has prepared the model and the optimizer.
        steps: optimizer steps to watch.
        skip: optimizer steps to let pass before them.

    Raises:
        UsageError: no optimizer was prepared yet, or another audit is going on in this process.
    """

    def __init__(self, accelerator: Any, steps: int = 2, skip: int = 1) -> None:
        if not accelerator._optimizers:
            raise UsageError("PrecauditHook: no optimizer was prepared yet; make the hook after accelerator.prepare()")
        self.accelerator = accelerator
        self.audit: Audit | None = Audit(accelerator._models, accelerator._optimizers, steps=steps, skip=skip)
        self.audit.begin()
        from precaudit.runtime.patching import patch

        self._undo: list[Callable[[], object]] = [
            patch(accelerator, "backward", self._around_backward),
            patch(accelerator, "end_training", self._around_end),
            lambda: atexit.unregister(self._tell),
        ]
        atexit.register(self._tell)

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.audit is not None and self.audit.over:
                self._tell()
            return original(*args, **kwargs)

        return backward

    def _around_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def end_training(*args: Any, **kwargs: Any) -> Any:
            self._tell()
            return original(*args, **kwargs)

        return end_training

    def _tell(self) -> None:
        run, self.audit = self.audit, None
        if run is None:
            return
        for undo in self._undo:
            undo()
        self.report = run.end()
        if self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                known = tracker.name in LOGS and tracker.name != "tensorboard"  # they have a run that is active
                own = partial(tracker.log, run.flat(), step=0)
                beside(tracker.name, partial(run.log, tracker.name) if known else own)
            if run.findings:
                print(run, file=sys.stderr)
