"""The exact step: the first whole step of the window, what it should have given, and what it lost where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import BackwardBegan, Boundary, Bus, StepBegan, StepEnded, WindowOpened
from ..guard import Guard
from ..operations import Companion, Operations
from ..settings import Settings
from ..trackers.modules import Modules
from ..trackers.optimizers import state_tensors, trained
from ..trackers.steps import Steps
from ..trackers.window import Window
from .companions import WIDE, wide
from .follower import Follower
from .places import Places
from .rows import relative

MOST = 20
"""Rows of operations that are told of."""


class Line(NamedTuple):
    """One row of the error budget."""

    what: str
    """"loss", "gradient", "update", "state"."""
    name: str
    dtype: str
    error: float | None
    """The norm of the error over that of the exact value; None where the exact value is zero, or is not known."""
    absolute: float
    """The norm of the error."""
    size: float
    """The norm of the exact value."""
    partial: bool
    """Something that could not be followed went into it."""

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


class ExactStep(Companion):
    """Begins with the window, ends with the first step that updates something."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        guard: Guard,
        settings: Settings,
        window: Window,
        steps: Steps,
        modules: Modules,
    ) -> None:
        self._guard, self._window, self._steps, self._modules = guard, window, steps, modules
        self._places = Places(window, modules)
        self.follower = Follower(guard, self._places.of)
        self.following = False
        """Asked by the mode, once per op."""
        self.lines: list[Line] = []
        self.number = 0
        """Which step it was; 0 while it is not over."""
        self._stepped: list[Any] = []
        """The optimizers that have taken their step in it."""
        self._begun: dict[int, Tensor] = {}
        """id of a parameter -> what it held before the step."""
        operations.companion = self
        if settings.exact:
            bus.on(WindowOpened, self._opened)
            bus.on(BackwardBegan, self._backward_began)
            bus.on(StepBegan, self._step_began)
            bus.on(StepEnded, self._step_ended)
            bus.on(Boundary, self._boundary)

    # -- what the mode tells

    def around(self, func: Any, args: Any, kwargs: Any, foreign: bool) -> Any:
        """Runs an op of the program as it would run without us, and in float64 beside that."""
        ready = None
        try:
            ready = self.follower.before(func, args, kwargs)
        except Exception as error:
            self._guard.fault(f"{func} in float64", error)
        out = private.run_foreign(func, args, kwargs) if foreign else func(*args, **kwargs)
        if ready is not None:
            try:
                self.follower.after(ready, args, kwargs, out)
            except Exception as error:
                self._guard.fault(f"{ready.recipe.name} in float64", error)
        return out

    # -- the step

    def _opened(self, event: WindowOpened) -> None:
        """Between steps the next one is whole; before a backward its forward pass has been missed."""
        if not self.number and not self._window.backward_since_step:
            self._begin()

    def _begin(self) -> None:
        self.following = True
        self.follower = Follower(self._guard, self._places.of)
        self._places.clear()
        self.lines, self._stepped, self._begun = [], [], {}

    def _backward_began(self, event: BackwardBegan) -> None:
        if self.following and event.accumulates:
            for root in event.roots:
                self._compare("loss", "", private.local(root))

    def _step_began(self, event: StepBegan) -> None:
        """The gradients are what the optimizer is about to read."""
        if not self.following:
            return
        errors, sizes = [], []
        for parameter in trained(event.optimizer):
            own = private.local(parameter)
            self._begun[id(parameter)] = own.detach().clone()
            if parameter.grad is not None:
                line = self._compare("gradient", self._modules.name(parameter), private.local(parameter.grad))
                errors.append(line.absolute)
                sizes.append(line.size)
        if errors:
            error, size = math.hypot(*errors), math.hypot(*sizes)
            self.lines.append(Line("gradients", "", "", relative(error, size, size), error, size, False))

    def _step_ended(self, event: StepEnded) -> None:
        """What the parameters moved by, and what the optimizer keeps from step to step."""
        if not self.following:
            return
        self._stepped.append(event.optimizer)
        for parameter in trained(event.optimizer):
            before = self._begun.pop(id(parameter), None)
            if before is not None:
                self._compare("update", self._modules.name(parameter), private.local(parameter), before)
        for held in state_tensors(event.optimizer):
            if held.tensor.dtype in WIDE and held.tensor.numel() > 1:
                owner = self._modules.name(held.parameter) if held.parameter is not None else ""
                self._compare("state", f"{owner}: {held.name}", held.tensor)

    def _boundary(self, event: Boundary) -> None:
        """A step that a loss scaler skipped shows nothing of the optimizer: the next one is tried."""
        if not self.following:
            if not self.number:
                self._begin()
        elif self._stepped:
            self.following = False
            self.number = self._window.step
            self.follower.rows.settle()
            self.follower.main.clear()
        else:
            self._begin()

    # -- comparing

    def _compare(self, what: str, name: str, real: Tensor, before: Tensor | None = None) -> Line:
        """Compares a tensor, or what was added to it since `before`, with what it should be."""
        entry = self.follower.main.find(real)
        exact, now = wide(real) if entry is None else entry.view(real), wide(real)
        if before is not None:
            exact, now = exact - wide(before), now - wide(before)
        error, size, length = _lengths((now - exact, exact, now))
        share = relative(error, size, length)
        line = Line(
            what,
            name,
            DTYPE_NAMES[real.dtype],
            share if entry is not None and math.isfinite(share) else None,
            error,
            size,
            entry is None or entry.partial,
        )
        self.lines.append(line)
        return line

    # -- what is told

    def content(self, rank: int) -> dict[str, Any] | None:
        """The exact step as plain values; None where there was none."""
        if not self.number:
            return None
        follower = self.follower
        total = follower.elements
        return {
            "step": self.number,
            "rank": rank,
            "followed": 1.0 - follower.elements_lost / total if total else 1.0,
            "not_followed": dict(follower.lost.most_common()),
            "budget": [line.as_json() for line in self.lines],
            "operations": self._operations(),
        }

    def _operations(self) -> list[dict[str, Any]]:
        """The operations that added most to the error, worst first."""
        rows = sorted(self.follower.rows.by_key.items(), key=lambda pair: -pair[1].added)
        return [
            {
                "path": key.site.path if key.site else None,
                "line": key.site.line if key.site else None,
                "module": key.module,
                "operation": key.operation,
                "dtype": key.dtype,
                "phase": key.phase,
                "times": row.times,
                "local": row.local,
                "error": row.distance,
                "amplification": row.amplification or None,
                "added": row.added,
            }
            for key, row in rows[:MOST]
            if row.added > 0
        ]


def _lengths(tensors: Iterable[Tensor]) -> list[float]:
    return [float(torch.linalg.vector_norm(each)) for each in tensors]
