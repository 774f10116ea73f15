"""Between windows: notices at next to no cost what was not so in the last one, and has another one opened.

Known limitations: what changes inside a step alone, as an autocast region that is left out from some step on, shows in
the next window only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import (
    Attempted,
    BackwardBegan,
    Bus,
    CompileCalled,
    GlanceBegan,
    Glanced,
    GoesOn,
    LossScaled,
    MayEndNow,
    ModuleCast,
    OptimizerLoaded,
    StateLoaded,
    WindowClosed,
)
from ..guard import Guard
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.late import Late
from ..trackers.modules import Modules
from ..trackers.optimizers import parameters
from ..trackers.origins import READABLE
from ..trackers.steps import Steps
from ..trackers.window import MANY_SKIPS, Window
from . import Watcher

SHARE = 1000
"""A look that takes a millisecond is followed by so many milliseconds without one: a thousandth of the run for each."""
OP_S = 8e-6
"""Seconds that an operation costs more under a mode."""


class Seldom:
    """How often something may be done that takes its time: of this thread, which on a busy machine passes slowly."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        return time.thread_time() >= self._next

    def took(self, seconds: float) -> None:
        self._next = time.thread_time() + SHARE * seconds


class Sentinels(Watcher):
    """They watch while `Late.on`, and are still while a window is open."""

    def __init__(
        self, bus: Bus, guard: Guard, ledger: Ledger, late: Late, window: Window, steps: Steps, modules: Modules
    ) -> None:
        self._bus, self._guard, self._ledger = bus, guard, ledger
        self._late, self._window, self._steps, self._modules = late, window, steps, modules
        self._dtypes: dict[int, Looks] = {}
        """Optimizer, by `id` -> what it looked like when a window closed."""
        self._looks, self._glances, self._reads = Seldom(), Seldom(), Seldom()
        self._done: set[tuple[str, bool]] | None = None
        """What was done with the weights between steps; None until the first glance after a window."""
        self._compiles = False
        self._scaler_used = False
        self._sum: Tensor | None = None
        """NaN once a loss was not finite, on a device that is not asked at each step."""
        bus.on(WindowClosed, lambda event: self._start_anew(), always=True)
        bus.on(CompileCalled, self._compile_called)
        bus.on(ModuleCast, self._module_cast)
        bus.on(StateLoaded, lambda event: self._late.look_again("weights were loaded", at_once=True))
        bus.on(OptimizerLoaded, lambda event: self._late.look_again("optimizer state was loaded", at_once=True))
        bus.on(Attempted, self._attempted, always=True)
        bus.on(GoesOn, self._goes_on, always=True)
        bus.on(Glanced, self._glanced, always=True)
        bus.on(LossScaled, self._loss_scaled, always=True)
        bus.on(BackwardBegan, self._backward_began, always=True)

    @property
    def _watch(self) -> bool:
        return self._late.on and not self._window.tracing and self._late.looks_on

    def _start_anew(self) -> None:
        self._dtypes.clear()
        self._done = None

    def _compile_called(self, event: CompileCalled) -> None:
        self._compiles = True

    # -- dtypes, and what is trained

    def _module_cast(self, event: ModuleCast) -> None:
        """A cast of what some optimizer holds, and be it taken back at once."""
        if not self._watch:
            return
        changed = {id(p) for p in event.module.parameters() if event.before.get(id(p), p.dtype) is not p.dtype}
        held = {id(p) for optimizer in self._steps.built for p in parameters(optimizer)} if changed else set()
        if changed & held:
            why = f"{event.method}() was called on a model that an optimizer holds"
            self._late.look_again(why, at_once=True)

    def _attempted(self, event: Attempted) -> None:
        if event.skipped and self._late.looks_on:
            self._skipped(event.scaler)
        if not self._looks.due() or not self._watch or event.optimizer is self._steps.hand_written:
            return
        began = time.thread_time()
        with self._guard.unseen():
            now = Looks(event.optimizer, self._roots(event.optimizer))
        before = self._dtypes.setdefault(id(event.optimizer), now)
        if before is not now:
            change = now.since(before)
            self._dtypes[id(event.optimizer)] = now
            if change:
                self._late.look_again(change)
        self._looks.took(time.thread_time() - began)

    def _roots(self, optimizer: Any) -> list[Any]:
        first = next(iter(parameters(optimizer)), None)
        holder = self._modules.holder(first) if first is not None else None
        return self._modules.around(holder)[-1:] if holder is not None else []

    def _skipped(self, scaler: Any) -> None:
        """GradScaler has read the device for this already: one number more costs nothing."""
        scale = getattr(scaler, "_scale", None)
        with self._guard.unseen():
            value = float(scale.item()) if isinstance(scale, Tensor) else math.nan
        self._late.skipped(value)
        if self._window.consecutive_skips == MANY_SKIPS - 1:
            self._late.look_again(f"{MANY_SKIPS - 1} steps in a row were skipped")

    # -- averages that begin, weights that are merged

    def _goes_on(self, event: GoesOn) -> None:
        if self._glances.due() and self._watch and not self._compiles:
            began = time.thread_time()
            mine = [private.local(p) for optimizer in self._steps.optimizers() for p in parameters(optimizer)]
            self._bus.tell(GlanceBegan(frozenset(map(private.storage_key, mine)) - {0}))
            self._glances.took(time.thread_time() - began)

    def _glanced(self, event: Glanced) -> None:
        self._glances.took(event.operations * OP_S)
        if not self._watch:
            return
        if self._done is None:
            self._done = set(event.done)
        new = sorted(event.done - self._done)
        self._done |= event.done
        if new:
            name, written = new[0]
            what = "writes to" if written else "reads"
            self._late.look_again(f"{name.strip('_')} {what} weights between two steps")

    # -- losses

    def _loss_scaled(self, event: LossScaled) -> None:
        self._scaler_used = True
        if self._watch:
            for loss in event.given:
                self._loss(loss)

    def _backward_began(self, event: BackwardBegan) -> None:
        """A scaled loss may overflow, and only GradScaler minds."""
        if self._watch and event.accumulates and not self._scaler_used and len(event.roots) == 1:
            self._loss(event.roots[0])

    def _loss(self, loss: Tensor) -> None:
        if type(loss) is not Tensor or not self._ledger.measures:
            return
        if private.unwatched() and loss.is_cpu and loss.dtype in READABLE and loss.numel() == 1:
            if not math.isfinite(loss.item()):
                with self._guard.unseen():
                    self._read(loss)
            return
        with self._guard.unseen():
            if loss.numel() != 1 or loss.dtype not in READABLE:
                return
            if loss.device.type == "cpu":
                self._read(loss)
                return
            if private.is_capturing(loss):
                return
            now = loss.detach().reshape(())
            self._sum = torch.zeros_like(now) if self._sum is None else self._sum
            self._sum = torch.add(self._sum.to(now), now, alpha=0)
            if self._reads.due():
                began = time.thread_time()
                self._read(self._sum)
                self._sum = None
                self._reads.took(time.thread_time() - began)

    def _read(self, loss: Tensor) -> None:
        value = float(loss.item())
        if math.isfinite(value):
            return
        word = "nan" if value != value else "inf"
        self._late.look_again("the loss was not finite")
        self._ledger.once(
            (Sentinels, "loss"),
            Observation(
                Kind.NON_FINITE,
                DTYPE_NAMES[loss.dtype],
                Role.LOSS,
                user_site(),
                detail=f"the loss of step {self._window.next_step}, after the traced steps",
                attrs={"what": "loss", "value": word},
            ),
        )
        self._bus.tell(MayEndNow())


class Looks:
    """The dtypes of what an optimizer holds, of its state and of the model's buffers, and what of it is trained."""

    def __init__(self, optimizer: Any, roots: Iterable[Any]) -> None:
        mine = parameters(optimizer)
        self.parameters = {id(p): p.dtype for p in mine}
        self.trained = {id(p) for p in mine if p.requires_grad}
        self.state = {
            (id(p), name): value.dtype
            for p in mine
            for name, value in optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor)
        }
        self.buffers = {name: b.dtype for root in roots for name, b in root.named_buffers()}

    def since(self, before: Looks) -> str:
        """What is another now, in words; "" where nothing is."""
        for what in ("parameters", "state", "buffers"):
            now, then = getattr(self, what), getattr(before, what)
            changed = [key for key, dtype in now.items() if then.get(key, dtype) is not dtype]
            if changed:
                old, new = (DTYPE_NAMES.get(d, str(d)) for d in (then[changed[0]], now[changed[0]]))
                return f"{WORDS[what]} changed from {old} to {new}"
        return "weights began to be trained" if self.trained - before.trained else ""


WORDS = {"parameters": "parameters", "state": "optimizer state", "buffers": "buffers"}
