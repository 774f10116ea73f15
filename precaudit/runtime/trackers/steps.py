"""Finds where one step ends and the next begins, whoever steps; there the window opens and closes."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from ..events import (
    Attempted,
    BackwardBegan,
    Boundary,
    Bus,
    GoesOn,
    LooksAgain,
    MicroBatchBegan,
    OptimizerBuilt,
    RestBegan,
    RestEnded,
    ScalerStepBegan,
    ScalerStepEnded,
    StepBegan,
    StepCalled,
    StepEnded,
    StepNested,
    StepOver,
    StepReturned,
    StepSkipped,
    StepUnseen,
    WindowClosed,
    WindowOpened,
)
from ..operations import BACKWARD, FORWARD
from .by_hand import ByHand
from .claims import Account
from .late import Late, Next
from .optimizers import parameters
from .unseen_steps import UnseenSteps
from .window import Window


class HandWritten:
    """Stands among the optimizers for a training loop that updates its parameters itself; it holds nothing."""

    def __init__(self) -> None:
        self.param_groups: list[Any] = []
        self.state: dict[Any, Any] = {}


class Steps:
    """Turns what torch tells of backward and of optimizers into attempts, boundaries, and the window's two ends."""

    def __init__(
        self, bus: Bus, window: Window, unseen: UnseenSteps, by_hand: ByHand, account: Account, late: Late
    ) -> None:
        self._bus, self._window, self._unseen, self._account, self._late = bus, window, unseen, account, late
        self.hand_written = HandWritten()
        self.by_hand = by_hand
        self.built: weakref.WeakSet[Any] = weakref.WeakSet()
        """The optimizers that were built, less those that step inside another one."""
        self.stepped: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        """The optimizers that made an attempt; `hand_written` among them."""
        self.by_optimizer = False
        """Some optimizer made an attempt; it may be gone since."""
        self.traced: dict[int, bool] = {}
        """Traced step -> whether an update was taken in it."""
        self.trains = False
        """The last backward is one that training goes through."""
        self.differentiates = False
        """The last backward was autograd.grad with a graph of its own."""
        self.accumulates = False
        """Some backward of this run wrote to `.grad`."""
        self._attempting: list[Any] = []
        """Optimizers that made an attempt of this step, which is not over yet."""
        self._scalers = 0
        """Steps of GradScalers that are going on."""
        self._updated = False
        """An optimizer stepped since the last of them began."""
        bus.on(OptimizerBuilt, self._optimizer_built, always=True)
        bus.on(StepNested, lambda event: self.built.discard(event.optimizer), always=True)
        bus.on(BackwardBegan, self._backward_began, always=True)
        bus.on(StepCalled, self._step_called, always=True)
        bus.on(StepReturned, self._step_returned, always=True)
        bus.on(ScalerStepBegan, self._scaler_step_began, always=True)
        bus.on(ScalerStepEnded, self._scaler_step_ended, always=True)
        bus.on(LooksAgain, lambda event: self._looks_again(), always=True)
        bus.on(StepSkipped, lambda event: self._attempt(event.optimizer, True), always=True)

    # -- what torch tells

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        """With `--skip 0` the first step is traced too: from the first optimizer on."""
        self.built.add(event.optimizer)
        if self._window.skip == 0 and not self._window.tracing and not self._window.attempts:
            self._open()

    def _backward_began(self, event: BackwardBegan) -> None:
        """A loop may train by autograd.grad alone; beside .backward() that is a penalty or a second derivative."""
        self.accumulates |= event.accumulates
        self.differentiates = event.creates_graph and not event.accumulates
        self.trains = event.accumulates or not (event.creates_graph or self.accumulates)
        if not self.trains:
            return
        self._bus.tell(MicroBatchBegan(self._window.backward_since_step > 0))
        self._end_what_no_hook_told_of(event.roots)
        if self._bus.is_over:
            return
        self._window.root_backward()
        if not self._window.tracing:
            self._open_before_backward()

    def _step_called(self, event: StepCalled) -> None:
        if not self._is_trial(event.optimizer):
            self._bus.tell(StepBegan(event.optimizer, event.given))

    def _step_returned(self, event: StepReturned) -> None:
        """A step that began before any backward counts all the same where its closure had one."""
        if self._is_trial(event.optimizer):
            return
        self._updated = True
        self._bus.tell(StepEnded(event.optimizer))
        if not self._scalers:
            self._attempt(event.optimizer, False)

    def _is_trial(self, optimizer: Any) -> bool:
        """Whether this step is a framework's own, which trains nothing: before any backward, or by its own account."""
        return not self._window.clock or self._account.tries_out(optimizer)

    def _scaler_step_began(self, event: ScalerStepBegan) -> None:
        self._scalers += 1
        self._updated = False

    def _scaler_step_ended(self, event: ScalerStepEnded) -> None:
        """It skips by not calling the optimizer, or by telling a fused kernel to do nothing."""
        self._scalers -= 1
        if not event.failed:
            skipped = event.kernel_skipped or not self._updated
            self._attempt(event.optimizer, skipped, event.scaler)

    # -- boundaries

    def _end_what_no_hook_told_of(self, roots: list[Tensor]) -> None:
        """Steps that only show by what they did are over when the next backward begins."""
        for optimizer in self._unseen.found(self.built):
            self._window.steps_unseen = True
            self._bus.tell(StepUnseen(optimizer))
            self._attempt(optimizer, False)
            if self._bus.is_over:
                return
        if self.no_optimizer and (self._window.written_by_hand or self.by_hand.stepped(roots)):
            self._window.written_by_hand = False
            self._bus.tell(StepUnseen(self.hand_written))
            self._attempt(self.hand_written, False)
            if self._bus.is_over:
                return
        if self._attempting:  # not every optimizer had a gradient in that backward
            self._step_over(self._window.tracing)

    def _attempt(self, optimizer: Any, skipped: bool, scaler: Any = None) -> None:
        """A step boundary, once every optimizer that steps inside one backward has made its attempt."""
        window = self._window
        traced = window.tracing
        if optimizer is not self.hand_written and window.taken.pop(self.hand_written, None) is not None:
            self.stepped.pop(self.hand_written, None)
            window.restart()
        self.stepped[optimizer] = True
        self.by_optimizer |= optimizer is not self.hand_written
        window.attempt(optimizer, skipped, traced)
        if window.step <= window.skip:
            window.opened()
        elif traced:
            self.traced[window.step] = self.traced.get(window.step, False) or not skipped
        self._bus.tell(Attempted(optimizer, skipped, scaler))
        if optimizer is not self.hand_written:
            self._attempting.append(optimizer)
        # Optimizers that step inside one backward are read and written once, after the last of them.
        if window.phase != BACKWARD or window.everybody_attempted(self.built):
            self._step_over(traced)

    def _step_over(self, traced: bool) -> None:
        """Numbers are read, stock is taken; the window opens or closes."""
        attempting = tuple(self._attempting)
        self._attempting.clear()
        self._bus.tell(Boundary(attempting))
        self._bus.tell(StepOver())
        if self._late.looks_on and not traced:
            self._look_on(0)
            self._bus.tell(GoesOn())
            return
        waiting = len(self.waiting())
        if traced and self._window.should_close(waiting):
            self._close(waiting)
        elif not traced and self._late.on:
            self._look_on(waiting)
        elif not traced and self._window.should_open(self.built):
            self._open()
        elif not traced:
            self._rest(self._window.should_rest(self.built))
        self._bus.tell(GoesOn())

    def _close(self, waiting: int) -> None:
        """The window is over; where the trace looks on, it rests."""
        looks_on = self._late.window_over(waiting)
        self._bus.tell(WindowClosed())
        if looks_on:
            self._window.closed()
            self._rest(True)

    def _looks_again(self) -> None:
        """What happens between two steps need not wait for the end of the next."""
        if self._window.phase == FORWARD and not self._attempting and not self._window.tracing:
            self._look_on(len(self.waiting()), at_boundary=False)

    def _look_on(self, waiting: int, at_boundary: bool = True) -> None:
        """Between windows: the next one opens or comes nearer, or nothing is left to wait for."""
        following = self._late.next(waiting)
        if following is Next.OPEN:
            self._open()
        elif following is Next.END:
            if at_boundary:
                self._close(0)
        else:
            self._rest(following is Next.REST)

    # -- the window

    def _open_before_backward(self) -> None:
        window = self._window
        if self._late.on:
            return
        if window.attempts:
            if window.steps_over >= window.skip:
                self._open()
        elif not self.built and window.micro_batches > window.skip:
            # No Optimizer, and no step that shows: its ops may.
            self._open()

    def _rest(self, rests: bool) -> None:
        """Of many steps to skip only the first and the last are looked at."""
        if rests is self._bus.rests:
            return
        if rests:
            self._bus.tell(RestBegan())
        self._bus.rests = rests
        if not rests:
            self._bus.tell(RestEnded())

    def _open(self) -> None:
        self._rest(False)
        self._window.windows += 1
        self._window.opened()
        self._window.tracing = True
        self._bus.tell(WindowOpened())

    # -- questions

    @property
    def no_optimizer(self) -> bool:
        """The loop updates its parameters itself, as far as is known: no optimizer was built, and none has stepped."""
        return not self.built and not self.optimizers()

    def waiting(self) -> list[Any]:
        """The optimizers that were built and have not stepped."""
        return [optimizer for optimizer in self.built if optimizer not in self.stepped]

    def optimizers(self) -> list[Any]:
        """The optimizers that made an attempt."""
        return [optimizer for optimizer in self.stepped if optimizer is not self.hand_written]

    def devices(self) -> list[str]:
        """Where the parameters lie that are stepped on."""
        return sorted({p.device.type for optimizer in self.optimizers() for p in parameters(optimizer)})

    def on_accelerator(self) -> bool:
        """Whether anything that is trained lies elsewhere than on the CPU."""
        return self.devices() not in ([], ["cpu"])
