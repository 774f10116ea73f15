"""Sees every op of the traced steps, and some before them: forward, backward, optimizer and collectives.

One dispatch mode inside the window, and a lighter one before it. What is to happen at an op's calls is asked once.

Known limitations: what runs inside a compiled region or a custom kernel is one op from here; marks do not follow
values through Python numbers, except a gradient norm read with `.item()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..events import BirthsMatter, BirthsOver, Bus, OpRefused, OpsPaused, OpsResumed, RestBegan, WindowOpened
from ..guard import Guard
from ..modes import Modes, OurMode
from ..operands import tensors_of
from ..operations import EARLY, FORWARD, Asked, Moment, Op, Operations, Plan
from ..optable import REDUCTION_COLLECTIVES
from ..patching import Undo
from . import Tap


class OpMode(OurMode):
    """The dispatch mode inside the window: as little as can be done per op."""

    def __init__(self, tap: OpTap, operations: Operations, moment: Moment) -> None:
        super().__init__()
        self.tap = tap
        self.plans = operations.plans
        self.follower = operations.follower
        self.companion = operations.companion
        self.moment = moment

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private.PLAIN and not private.is_plain(kind):
                return func(*args, **(kwargs or {})) if private.simulates(kind) else NotImplemented
        plan = self.plans.get(id(func))
        if plan is None:
            plan = self.tap.plan(func)
        if plan is None or private.modes_below():  # the second: a compiler writes down all that is called from here
            return self.tap.unasked(self, func, args, kwargs or {})
        if plan.before:
            self.tap.before(plan, args, kwargs or {})
        known = self.tap.look_before(func, args, kwargs) if self.follower.following else None
        try:
            if self.companion.following:
                out = self.companion.around(func, args, kwargs or {}, plan.foreign)
            elif plan.foreign:
                out = private.run_foreign(func, args, kwargs or {})
            else:
                out = plan.run(*args, **kwargs) if kwargs else plan.run(*args)
        except RuntimeError as error:
            self.tap.refused(plan, args, error)
            raise
        if known is not None:
            self.tap.look_after(func, known, args, out)
        phase = self.moment.phase
        if phase != FORWARD and torch.is_grad_enabled():
            phase = self.tap.phase(self.moment, args)
        asked = plan.asked[phase]
        if asked is not None:
            self.tap.react(plan.op, asked, args, kwargs, out)
        return out


class EarlyMode(OurMode):
    """The mode before the window: from the first optimizer on, when state, averages and sums are made."""

    def __init__(self, tap: OpTap, operations: Operations, full: OpMode) -> None:
        super().__init__()
        self.tap = tap
        self.plans = operations.plans
        self.follower = operations.follower
        self.scout = operations.scout
        self.full = full

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private.PLAIN and not private.is_plain(kind):
                return func(*args, **(kwargs or {})) if private.simulates(kind) else NotImplemented
        plan = self.plans.get(id(func))
        if plan is None:
            plan = self.tap.plan(func)
        if plan is None or private.modes_below():
            return self.tap.unasked(self, func, args, kwargs or {})
        if self.scout.follows and not plan.foreign and self.tap.is_wanted(args):
            return self.full.__torch_dispatch__(func, types, args, kwargs)
        known = self.tap.look_before(func, args, kwargs) if self.follower.following else None
        try:
            if plan.foreign:
                out = private.run_foreign(func, args, kwargs or {})
            else:
                out = plan.run(*args, **kwargs) if kwargs else plan.run(*args)
        except RuntimeError as error:
            self.tap.refused(plan, args, error)
            raise
        if known is not None:
            self.tap.look_after(func, known, args, out)
        asked = plan.asked[EARLY]
        if asked is not None:
            self.tap.react(plan.op, asked, args, kwargs, out)
        return out


class OpTap(Tap):
    """Puts the modes in and takes them out, and describes each op once."""

    def __init__(self, bus: Bus, guard: Guard, modes: Modes, operations: Operations, moment: Moment) -> None:
        self._bus, self._guard, self._modes, self._operations = bus, guard, modes, operations
        self._full = OpMode(self, operations, moment)
        self._early = EarlyMode(self, operations, self._full)
        self._in: set[OurMode] = set()
        self._composite: dict[int, bool] = {}
        """By the op's `id`, whether it is made of others, which are asked about in its place."""
        bus.on(BirthsMatter, lambda event: self._put_in(self._early))
        bus.on(BirthsOver, lambda event: self._take_out(self._early))
        bus.on(WindowOpened, lambda event: self._put_in(self._full))
        bus.on(RestBegan, lambda event: self._take_out(self._full))
        bus.on(OpsPaused, lambda event: self._take_out(self._full))
        bus.on(OpsResumed, lambda event: self._put_in(self._full))

    def install(self) -> Iterable[Undo]:
        yield lambda: self._take_out(self._full)
        yield lambda: self._take_out(self._early)

    def _put_in(self, mode: OurMode) -> None:
        if mode not in self._in:
            self._in.add(mode)
            self._modes.put_in(mode)

    def _take_out(self, mode: OurMode) -> None:
        if mode in self._in:
            self._in.discard(mode)
            self._modes.take_out(mode)

    # -- what the modes ask

    def plan(self, func: Any) -> Plan | None:
        """What is to happen at this op's calls; None where that cannot be told."""
        if self._composite.get(id(func)):
            return None
        try:
            if self._composite.setdefault(id(func), private.is_composite(func)):
                return None
            return self._operations.plan(_described(func), private.kernel_of(func), private.is_foreign(func))
        except Exception as error:
            self._guard.fault(f"what {func} does", error)
            return None

    def unasked(self, mode: OurMode, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an op that nobody is asked about; where it is made of others, the mode sees each of those."""
        if not self._composite.get(id(func)) or private.modes_below():
            return func(*args, **kwargs)
        if any(map(private.has_kernels_of_its_own, tensors_of((*args, *kwargs.values())))):
            return func(*args, **kwargs)
        return private.run_composite(mode, func, args, kwargs)

    def look_before(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the follower knows of an op that is about to run."""
        try:
            return self._operations.follower.before(func, args, kwargs or {})
        except Exception as error:
            self._guard.fault(f"what {func} is given", error)
            return None

    def look_after(self, func: Any, known: Any, args: Any, out: Any) -> None:
        """Tells the follower what came of it."""
        try:
            self._operations.follower.after(func, known, args, out)
        except Exception as error:
            self._guard.fault(f"what {func} gives", error)

    def phase(self, moment: Moment, args: Any) -> int:
        """Which part of a step an op belongs to that gradients flow through, outside of the forward pass."""
        return self._guard.ask("a part of a step", moment.with_gradients, args, otherwise=moment.phase)

    def is_wanted(self, args: Any) -> bool:
        """Whether the scout wants an op to be seen as inside of the window."""
        return self._guard.ask("an operation before the window", self._operations.scout.sees, args, otherwise=False)

    def before(self, plan: Plan, args: Any, kwargs: Any) -> None:
        """Tells those who want to know before it runs."""
        try:
            for act in plan.before:
                act(plan.op.name, args, kwargs, None)
        except Exception as error:
            self._guard.fault(f"one operation ({plan.op.name})", error)

    def react(self, op: Op, asked: Asked, args: Any, kwargs: Any, out: Any) -> None:
        """Calls who asked; a fault of ours becomes a note and never reaches the user's program."""
        try:
            for act in asked[0] if isinstance(out, Tensor) and out.dtype in LOW else asked[1]:
                act(op.name, args, kwargs, out)
        except Exception as error:
            self._guard.fault(f"one operation ({op.name})", error)

    def refused(self, plan: Plan, args: Any, error: BaseException) -> None:
        self._bus.tell(OpRefused(plan.op.name, args, error))


def _described(func: Any) -> Op:
    schema = getattr(func, "_schema", None)
    name = schema.name.partition("::")[2] if schema is not None else str(func)
    arguments = enumerate(schema.arguments) if schema is not None else ()
    written = tuple(i for i, arg in arguments if arg.alias_info is not None and arg.alias_info.is_write)
    in_place = written if name.endswith("_") else ()
    if name in REDUCTION_COLLECTIVES:
        in_place = (0,)  # their schemas do not say so
    by_kernel = written if private.is_foreign(func) and not in_place else ()
    aten = schema is not None and schema.name.startswith("aten::")
    return Op(func, name, aten, in_place, bool(in_place or written), by_kernel)
