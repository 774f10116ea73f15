"""When the first traced step did what: its phases, and the moments of casts, reductions and gradient norms.

Times are the host's: on a GPU the work itself comes later. What the trace costs is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any

from torch import Tensor

from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES
from ..events import BackwardBegan, BackwardEnded, Boundary, Bus, StepCalled, StepReturned, WindowOpened
from ..operations import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER, Heard, Op, Operations
from ..optable import NORMS, REDUCTION_COLLECTIVES
from .window import Window

MOST = 4096
"""Marks of one step; and phases, of which each micro-batch has two."""
STEP = "optimizer step"
PARTS = 80
"""Into so many equal parts the step is divided: equal marks of one part are one, with their number."""

Mark = tuple[float, str, str, str]
"""(moment, what, from dtype, to dtype)."""


class Timeline:
    """One step of one process."""

    def __init__(self, bus: Bus, operations: Operations, window: Window) -> None:
        self._window = window
        self._on = False
        self._began = self._since = 0.0
        self.step = 0
        """The number of the step; 0 before it began."""
        self._phases: list[tuple[str, float, float]] = []
        self._marks: list[Mark] = []
        operations.on(self._hear)
        bus.on(WindowOpened, lambda event: self._open())
        bus.on(BackwardBegan, lambda event: self._phase("forward"))
        bus.on(BackwardEnded, lambda event: self._phase("backward"))
        bus.on(StepCalled, lambda event: self._phase("between backward and step"))
        bus.on(StepReturned, lambda event: self._step_returned())
        bus.on(Boundary, lambda event: self._close())

    def content(self) -> dict[str, Any] | None:
        """The step as the plain values of a report's timeline; None where none was seen whole."""
        if self._on or not self._phases:
            return None
        end = self._phases[-1][2]
        return {
            "step": self.step,
            "seconds": round(end, 6),
            "phases": [{"name": name, "start": round(a, 6), "end": round(b, 6)} for name, a, b in self._phases],
            "marks": [
                {"at": at, "what": what, "source": source, "target": target, "count": count}
                for (at, what, source, target), count in sorted(_gathered(self._marks, end).items())
            ],
        }

    def _open(self) -> None:
        if not self.step:
            self.step = self._window.next_step
            self._on = True
            self._began = perf_counter()

    def _phase(self, name: str) -> None:
        """What went on until now was this."""
        if self._on and len(self._phases) < MOST:
            now = perf_counter() - self._began
            self._phases.append((name, self._since, now))
            self._since = now

    def _step_returned(self) -> None:
        if self._phases:
            self._phase(STEP)
        else:  # that of the step before, at whose end the window opened
            self._began = perf_counter()

    def _close(self) -> None:
        """Told inside the last optimizer's step, or before the next backward."""
        if self._on and self._phases:
            if self._phases[-1][0] != STEP:
                self._phase(STEP)
            self._on = False

    def _hear(self, op: Op) -> Iterable[Heard]:
        act = (
            self._cast
            if op.name == "_to_copy"
            else self._reduced
            if op.name in REDUCTION_COLLECTIVES
            else self._norm
            if op.name in NORMS
            else None
        )
        if act is not None:
            for phase in (GRADIENTS,) if act == self._norm else (FORWARD, BACKWARD, GRADIENTS, OPTIMIZER):
                yield Heard(phase, act)

    def _cast(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if self._on and args[0].dtype is not out.dtype and out.dtype in FLOATING_DTYPES:
            self._mark("cast", args[0].dtype, out.dtype)

    def _reduced(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if self._on:
            given = args[0] if isinstance(args[0], Tensor) else args[0][0]
            self._mark("reduction", given.dtype, given.dtype)

    def _norm(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if self._on:
            given = args[0] if isinstance(args[0], Tensor) else args[0][0]
            self._mark("gradient norm", given.dtype, given.dtype)

    def _mark(self, what: str, source: Any, target: Any) -> None:
        if len(self._marks) < MOST:
            self._marks.append((perf_counter() - self._began, what, DTYPE_NAMES[source], DTYPE_NAMES[target]))


def _gathered(marks: Iterable[Mark], end: float) -> dict[Mark, int]:
    """Marks by the middle of the part of the step they fall into, and how many of each there are."""
    found: dict[Mark, int] = {}
    for at, what, source, target in marks:
        if at <= end:
            middle = (min(int(at / end * PARTS), PARTS - 1) + 0.5) / PARTS * end
            key = (round(middle, 6), what, source, target)
            found[key] = found.get(key, 0) + 1
    return found
