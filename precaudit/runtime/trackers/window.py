"""Counts attempts, steps and micro-batches, and says which phase of a step the program is in."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from typing import Any

from ..events import (
    BackwardBegan,
    BackwardEnded,
    BackwardRuns,
    Bus,
    ParameterWritten,
    StepFailed,
    StepReturned,
    StepRuns,
)
from ..operands import in_graph
from ..operations import BACKWARD, CLOSURE, FORWARD, GRADIENTS, OPTIMIZER, Moment
from ..settings import Settings

PATIENCE = 8
"""Steps of others after which an optimizer that has not stepped is no longer waited for."""

MANY_SKIPS = 8
"""Attempts skipped in a row from which on a loss scale is not looking for its first value any more."""


class Window(Moment):
    """When op tracing starts and ends.

    An attempt is one call of an optimizer's step, or of GradScaler's for it; a skipped attempt updated nothing.
    Tracing starts when an optimizer has made `skip` attempts and ends when every optimizer in use has taken
    `steps` more steps, or after `attempts` attempts of one optimizer: many that step inside one backward are one step.
    """

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self.skip, self.steps, self.limit = settings.skip, settings.steps, settings.attempts
        self.tracing = False
        """Every op is seen."""
        self.phase = FORWARD
        self._around_backward = FORWARD
        self.creates_graph = False
        """The last backward makes a graph of its own: with gradients on, ops are its own and no checkpoint's."""
        self._around_step = FORWARD
        self.steps_unseen = False
        """Some optimizer's steps call no hook: they are told only by the next backward."""
        self.written_by_hand = False
        """A loop without an Optimizer wrote to a parameter since backward: its step."""
        self.attempts = 0
        self.skipped = 0
        self.consecutive_skips = 0
        self.micro_batches = 0
        """Root backward calls so far."""
        self.clock = 0
        """Calls of the autograd engine, `autograd.grad` among them: what lives through two of them is long-lived."""
        self.steps_over = 0
        """Steps that have ended: each optimizer made its attempt, or another backward came after at least one."""
        self._attempted: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers that made an attempt in the step that is going on."""
        self._somebody_attempted = False
        """Some optimizer did; it may be gone since."""
        self.taken: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.backward_since_step = 0
        self.micro_batches_of_step = 0
        """Root backward calls of the last step that had any."""
        self.every_micro_batch_counts = False
        """Something is summed in low precision from one micro-batch to the next: what each adds is measured."""
        self.micro_batches_before = 0
        self.windows = 0
        """Windows that were opened, this one among them."""
        self.awaited: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers for which a window after the first was opened."""
        self._opened_at = 0
        self._micro_batches_earlier = 0
        """Root backward calls of the windows that are over."""
        self._before: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._marks: list[tuple[float, bool]] = []
        bus.on(BackwardBegan, self._backward_began, always=True)
        bus.on(BackwardRuns, self._backward_runs, always=True)
        bus.on(BackwardEnded, self._backward_ended, always=True)
        bus.on(StepRuns, self._step_runs, always=True)
        bus.on(StepReturned, self._leave_step, always=True)
        bus.on(StepFailed, self._leave_step, always=True)
        bus.on(ParameterWritten, self._parameter_written, always=True)

    # -- the phase

    def _backward_began(self, event: BackwardBegan) -> None:
        self.clock += 1
        self._around_backward = self.phase
        self.creates_graph = event.creates_graph

    def _backward_runs(self, event: BackwardRuns) -> None:
        self.phase = BACKWARD

    def _backward_ended(self, event: BackwardEnded) -> None:
        outer = self._around_backward
        self.phase = OPTIMIZER if outer == OPTIMIZER else GRADIENTS if event.accumulates else outer

    def _step_runs(self, event: StepRuns) -> None:
        self._around_step = self.phase
        self.phase = OPTIMIZER

    def _leave_step(self, event: StepReturned | StepFailed) -> None:
        self.phase = BACKWARD if self._around_step == BACKWARD else FORWARD

    def _parameter_written(self, event: ParameterWritten) -> None:
        self.written_by_hand |= self.backward_since_step > 0

    def with_gradients(self, args: Any) -> int:
        """A closure's forward pass; one that a checkpoint computes again inside backward; or a step that told no end.

        After a hand-written step the forward pass begins with what gradients flow through: `p.data` is updated outside
        of no_grad too.
        """
        if self.phase == OPTIMIZER:
            return CLOSURE
        if self.phase == BACKWARD:
            return BACKWARD if self.creates_graph else FORWARD
        if self.phase == GRADIENTS and self.written_by_hand and in_graph(args):
            self.phase = FORWARD
        return FORWARD if self.steps_unseen else self.phase

    # -- attempts and steps

    def root_backward(self) -> None:
        """Books a backward that training goes through."""
        if self._somebody_attempted:
            self._next()
        self.micro_batches += 1
        self.backward_since_step += 1

    def attempt(self, optimizer: Any, skipped: bool, traced: bool) -> None:
        """Books one attempt of an optimizer, after it ended."""
        if self.phase == GRADIENTS:  # a skipped step: its hooks did not fire
            self.phase = FORWARD
        self.attempts += 1
        if optimizer in self._attempted:  # gradients that came without a backward of their own: functorch
            self._next()
        if not self._somebody_attempted:
            self._marks.append((time.perf_counter(), traced))
        self._attempted.add(optimizer)
        self._somebody_attempted = True
        self.micro_batches_of_step = self.backward_since_step or self.micro_batches_of_step
        self.backward_since_step = 0
        if skipped:
            self.skipped += 1
            self.consecutive_skips += 1
            self.taken.setdefault(optimizer, 0)
        else:
            self.consecutive_skips = 0
            self.taken[optimizer] = self.taken.get(optimizer, 0) + 1

    def restart(self) -> None:
        """Counts from the first step again: an Optimizer came that nobody saw being built."""
        self.steps_over = 0
        self._attempted.clear()
        self._somebody_attempted = False

    def _next(self) -> None:
        """A step is over."""
        self.steps_over += 1
        self._attempted.clear()
        self._somebody_attempted = False

    @property
    def stuck(self) -> bool:
        """Whether the last attempts were all skipped, too many of them."""
        return self.consecutive_skips >= MANY_SKIPS

    @property
    def step(self) -> int:
        """The number of the step that is going on, from 1."""
        return self.steps_over + 1

    @property
    def next_step(self) -> int:
        """Asked at a step's end: the number of the one that begins with the next backward."""
        return self.step + self._somebody_attempted

    def everybody_attempted(self, known: Iterable[Any]) -> bool:
        """Whether each optimizer made its attempt in this step: in the first those that were built, then who steps."""
        return all(optimizer in self._attempted for optimizer in (self.taken if self.steps_over else known))

    def should_open(self, known: Iterable[Any]) -> bool:
        """Whether the steps to skip are over; `known` are the optimizers that were built."""
        return self.steps_over + all(optimizer in self._attempted for optimizer in known) >= self.skip

    def should_rest(self, known: Iterable[Any]) -> bool:
        """Whether the step that begins is neither the first nor the last of those to skip."""
        over = self.steps_over + all(optimizer in self._attempted for optimizer in known)
        return 0 < over < self.skip - 1

    def opened(self) -> None:
        """What happened up to now is not part of the traced steps."""
        self._opened_at = self.step
        self.micro_batches_before = self.micro_batches
        self._before = weakref.WeakKeyDictionary(self.taken)

    def closed(self) -> None:
        """The window is over, and another one may open later."""
        self._micro_batches_earlier = self.micro_batches_inside
        self.tracing = False

    @property
    def micro_batches_inside(self) -> int:
        """Root backward calls of the traced steps; of all steps where tracing has not begun."""
        now = self.micro_batches - self.micro_batches_before if self.tracing or not self.windows else 0
        return self._micro_batches_earlier + now

    def should_close(self, waiting: int) -> bool:
        """Whether every optimizer has taken its steps, or patience has run out.

        `waiting` optimizers were built and have not stepped: a generator is waited for through its critic's steps,
        one that is never used is not.
        """
        taken = {optimizer: steps - self._before.get(optimizer, 0) for optimizer, steps in self.taken.items()}
        if self.windows > 1:  # for one that has just begun: others may be through with their work
            stepped = [steps for steps in taken.values() if steps]
            through = bool(stepped) and min(stepped) >= self.steps
            late = self.step - self._opened_at >= self.limit
            return late or (through and all(taken.get(each, 0) >= self.steps for each in self.awaited))
        if self.step >= self.limit + max(0, self.skip - 1):
            return True
        if not self.taken:
            return self.micro_batches > (self.skip + self.steps) * 4
        if waiting and self.step < PATIENCE:
            return False
        return min(taken.values()) >= self.steps

    def overhead(self) -> dict[str, float]:
        """Median seconds between steps, untraced and traced; what was not measured is left out."""
        out = {}
        for name, wanted in (("step_s_untraced", False), ("step_s_traced", True)):
            pairs = zip(self._marks, self._marks[1:], strict=False)
            spans = sorted(later[0] - earlier[0] for earlier, later in pairs if later[1] is wanted)
            if spans:
                out[name] = spans[len(spans) // 2]
        return out
