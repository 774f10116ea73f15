"""Of a step with many micro-batches only the first two and the last are seen op by op: the others repeat them.

What hooks tell (losses, gradients, loss scaling, the graph of each backward) is heard of all. Where something is summed
in low precision from one micro-batch to the next, every one of them counts and is seen.
"""

from __future__ import annotations

from ..events import BackwardEnded, Bus, OpsPaused, OpsResumed, StepCalled, StepOver, WindowClosed
from ..operations import Operations
from .steps import Steps
from .window import Window

FIRST = 2
"""What is updated in both of them is a sum over micro-batches."""
FEWEST = 5
"""Micro-batches from which on leaving some out is worth it."""


class LongSteps:
    """Pauses and resumes op tracing inside a step, by the number of micro-batches that the last step had."""

    def __init__(self, bus: Bus, window: Window, steps: Steps, operations: Operations) -> None:
        self._bus, self._window, self._steps, self._operations = bus, window, steps, operations
        self.expected = 0
        """Micro-batches of the last step."""
        self.left_out = 0
        """Micro-batches of the traced steps that were not seen op by op."""
        self.surprises = 0
        """Steps that came sooner than the number of the last one foretold: their last micro-batch was left out too."""
        self._paused = False
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(StepCalled, lambda event: self._step_called())
        bus.on(StepOver, self._step_over)
        bus.on(WindowClosed, lambda event: self._resume())

    def _backward_ended(self, event: BackwardEnded) -> None:
        window = self._window
        if not window.tracing or not event.accumulates:
            return
        done = window.backward_since_step
        if self._paused:
            self.left_out += 1
            if done >= self.expected - 1:
                self._resume()
        elif done == FIRST and self.expected >= FEWEST and self._may_pause():
            self._paused = True
            self._bus.tell(OpsPaused())

    def _may_pause(self) -> bool:
        """Not where a step shows by its ops alone, either."""
        if self._operations.companion.following:  # the exact step is a whole one
            return False
        return not self._window.every_micro_batch_counts and bool(self._steps.optimizers())

    def notes(self) -> list[str]:
        """What to say of it in the report."""
        if not self.left_out:
            return []
        all_of_them = self._window.micro_batches_inside
        last = (
            " and the last" if not self.surprises else " and, where their number was that of the step before, the last"
        )
        return [
            f"of {all_of_them} micro-batches {all_of_them - self.left_out} were seen op by op, "
            f"the first two{last} of each step; losses, gradients and loss scaling were seen in all"
        ]

    def _step_called(self) -> None:
        self.surprises += self._paused
        self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._bus.tell(OpsResumed())

    def _step_over(self, event: StepOver) -> None:
        self._resume()
        self.expected = self._window.micro_batches_of_step
