"""Looks on after the window: opens another one where something new begins, and at the steps that --at names.

Between windows the bus rests, as between the first and the last of many steps to skip: who counts hears, nobody else.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from ...model.vocabulary import Site
from ..events import Attempted, Bus, LooksAgain, OptimizerBuilt, WindowOpened
from ..settings import Settings
from .optimizers import parameters
from .window import Window

LONGEST_WAIT = 200
"""Steps after the window for which a run that is to be stopped goes on for an optimizer that has not stepped."""
PATIENCE_S = 60.0
"""Seconds of the same."""
SOON = 8
"""Steps that are looked at, but for their ops, once an optimizer was built: what it makes in its first step is seen."""
MOST = 30
"""Windows after the first; what happens more often than that is no event any more."""
SAME = 3
"""Windows for one reason."""


class Next(Enum):
    """What the trace does in the step that begins."""

    OPEN = auto()
    """Its ops are seen: a window."""
    NEAR = auto()
    """All is heard but ops: a window may be next."""
    REST = auto()
    END = auto()
    """Nothing is left to wait for: the run is stopped."""


class Late:
    """Asked at each step boundary once the first window is over."""

    def __init__(self, bus: Bus, window: Window, settings: Settings) -> None:
        self._bus, self._window, self._settings = bus, window, settings
        self.on = False
        """The first window is over, and the run goes on being watched."""
        self.since = 0
        """The step with which the last window ended."""
        self._waits_since = 0.0, 0
        self._at = sorted(settings.at)
        self._why = ""
        """Why the next window is to open; "" where it is not."""
        self._times: dict[str, int] = {}
        """Windows by reason, without the step."""
        self._told: list[str] = []
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers that stepped in a window."""
        self._seen: set[int] = set()
        """`id` of each of their parameters: a reference of any kind would be in the way of who swaps them."""
        self._kinds: set[type] = set()
        self._near_until = 0
        self._skips: list[tuple[int, float]] = []
        """(step, loss scale) of those that were skipped between windows."""
        bus.on(OptimizerBuilt, self._optimizer_built)
        bus.on(Attempted, self._attempted, always=True)
        bus.on(WindowOpened, lambda event: self._opened())

    @property
    def looks_on(self) -> bool:
        """The first window is over, and sentinels watch until the program ends."""
        return self.on and self._settings.looks_on

    # -- what the program does

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        if self.on:
            self._near_until = self._window.next_step + SOON
            self._bus.tell(LooksAgain())

    def _attempted(self, event: Attempted) -> None:
        optimizer = event.optimizer
        if optimizer in self._known:
            return
        if self._window.tracing:
            self._know(optimizer)
        elif self.on:
            if self._is_new(optimizer):
                self._window.awaited.add(optimizer)
                self.look_again(f"{type(optimizer).__name__} began to step")
            self._know(optimizer)

    def _is_new(self, optimizer: Any) -> bool:
        """Whether it steps on something that no window saw stepped on, or in another way."""
        return type(optimizer) not in self._kinds or any(id(p) not in self._seen for p in parameters(optimizer))

    def _know(self, optimizer: Any) -> None:
        self._known.add(optimizer)
        self._kinds.add(type(optimizer))
        self._seen.update(map(id, parameters(optimizer)))

    def look_again(self, why: str, at_once: bool = False) -> None:
        """Opens a window with the next step, and says why in the report; `at_once`: with what is done now."""
        if self.on and not self._why and not self._window.tracing and self._times.get(why, 0) < SAME:
            self._times[why] = self._times.get(why, 0) + 1
            self._why = why
            if at_once:
                self._bus.tell(LooksAgain())

    def skipped(self, scale: float) -> None:
        """A step was skipped between windows, at this loss scale."""
        self._skips.append((self._window.step, scale))

    # -- what the trace does

    def window_over(self, waiting: int) -> bool:
        """Whether the trace looks on now that a window is over; `waiting` optimizers were built and never stepped."""
        if not self.on:
            self._waits_since = time.monotonic(), self._window.step
        self.since = self._window.steps_over
        self._window.awaited.clear()
        self._at = [step for step in self._at if step >= self._window.next_step]
        self.on = self._settings.looks_on or bool(self._at) or (waiting > 0 and not self._waited_enough())
        return self.on

    def _waited_enough(self) -> bool:
        began, step = self._waits_since
        return self._window.step - step >= LONGEST_WAIT or time.monotonic() - began >= PATIENCE_S

    def next(self, waiting: int) -> Next:
        """What to do in the step that begins."""
        step = self._window.next_step
        if self._at and step >= self._at[0]:
            self._why = "--at"
        if self._why and len(self._told) < MOST:
            return Next.OPEN
        self._why = ""
        if not (self._settings.looks_on or self._at or (waiting and not self._waited_enough())):
            return Next.END
        near = step < self._near_until or (self._at and step >= self._at[0] - 1)
        return Next.NEAR if near else Next.REST

    def _opened(self) -> None:
        if self.on:
            self._at = [step for step in self._at if step > self._window.next_step]
            if self._why:
                self._told.append(f"step {self._window.next_step}: {self._why}")
            self._why = ""

    # -- what is said

    def notes(self, never: Iterable[tuple[Any, Site | None]]) -> list[str]:
        """Why further windows were opened, and which optimizers never stepped while the trace looked on."""
        told = [f"looked again from {each}" for each in self._told]
        if self._skips:
            (first, began), (last, ended) = self._skips[0], self._skips[-1]
            scales = f", at loss scales from {began:g} to {ended:g}" if began == began else ""
            told.append(f"after the traced steps {len(self._skips)} were skipped, steps {first} to {last}{scales}")
        for optimizer, site in never:
            made = f", made at {_place(site)}," if site is not None else ""
            told.append(
                f"{type(optimizer).__name__}{made} did not step while the run was watched: nothing is known of what it "
                f"trains{'' if self._settings.looks_on else '; --watch waits for it'}"
            )
        return told


def _place(site: Site) -> str:
    return f"{site.path.rpartition('/')[2]}:{site.line}"
