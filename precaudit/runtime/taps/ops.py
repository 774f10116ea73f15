"""Sees every op of the traced steps: forward, backward, optimizer and collectives.

One dispatch mode; for each op a plan, made once, that lists which watchers to ask in which phase.

Known limitations: what runs inside a compiled region or a custom kernel is one op from here; marks do not follow
values through Python numbers, except a gradient norm read with `.item()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..events import OpRefused, OpsPaused, OpsResumed, WindowOpened
from ..modes import OurMode
from ..optable import CUDA_FLOAT32, REDUCTION_COLLECTIVES
from ..trackers.lineage import kind_of
from ..trackers.replay import computes
from ..watchers import BACKWARD, BEFORE_WRITE, FORWARD, GRADIENTS, OPTIMIZER, Reaction
from ..watchers.births import MAKERS

if TYPE_CHECKING:
    from ..session import Session

Asked = tuple[tuple[Reaction, bool], ...]


class Plan(NamedTuple):
    """How to react to one op."""

    func: Any
    """The op, kept alive: plans are found by its id, since hashing one calls Python code of torch's."""
    run: Any
    """What calling the op comes to."""
    name: str
    kind: str | None
    written: tuple[int, ...]
    """Positions of the arguments it writes to in place."""
    writes: bool
    """It writes to some argument, in place or with `out=`."""
    makes: bool
    """It computes new values."""
    asked: tuple[Asked, Asked, Asked, Asked]
    """By phase: reactions, and whether each wants only low-precision results."""
    before: tuple[Reaction, ...]
    """Who is asked before it writes."""
    foreign: bool
    by_kernel: tuple[int, ...]
    """Positions of what a library's kernel writes to, in ways that nothing tells."""


class OpMode(OurMode):
    """The dispatch mode itself: as little as can be done per op."""

    def __init__(self, probe: OpProbe) -> None:
        super().__init__()
        self.probe = probe
        self.plans = probe.plans
        self.window = probe.session.window
        self.origins = probe.session.origins
        self.exact = probe.session.exact

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private.PLAIN and not private.is_plain(kind):
                return func(*args, **(kwargs or {})) if private.simulates(kind) else NotImplemented
        plan = self.plans.get(id(func))
        if plan is None:
            try:
                plan = self.probe.plan(func)
            except Exception as error:
                self.probe.session.guard.fault(f"what {func} does", error)
                return func(*args, **(kwargs or {}))
        if plan.writes:
            self.probe.before_write(plan, func, args, kwargs or {})
        named = kwargs or {}
        operands = self.origins.before(func, args, named) if self.origins.following else None
        try:
            if self.exact.following:
                out = self.exact.around(func, args, named, plan.foreign)
            elif plan.foreign:
                out = private.run_foreign(func, args, named)
            else:
                out = plan.run(*args, **named)
        except RuntimeError as error:
            self.probe.session.bus.tell(OpRefused(plan.name, args, error))
            raise
        if operands is not None:
            self.origins.after(func, operands, args, out)
        phase = self.window.phase
        if phase == OPTIMIZER and torch.is_grad_enabled():
            phase = FORWARD  # the forward pass of a closure
        elif phase == BACKWARD and torch.is_grad_enabled() and not self.window.creates_graph:
            phase = FORWARD  # a checkpoint computes its part of the forward pass again
        elif phase == GRADIENTS and torch.is_grad_enabled() and self.probe.session.steps.forward_begins(args):
            phase = FORWARD  # no hook told that the step is over
        asked = plan.asked[phase]
        if asked or plan.written or plan.by_kernel or (plan.makes and self.window.phase == OPTIMIZER):
            self.probe.react(plan, asked, func, args, kwargs, out)
        return out


class OpProbe:
    """The plans, and the watchers they ask."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.plans: dict[int, Plan] = {}
        self.mode: OpMode | None = None
        self._registered: list[tuple[int, frozenset[str], Reaction, bool]] = []
        session.bus.on(WindowOpened, lambda event: self.install())
        session.bus.on(OpsPaused, lambda event: self.remove())
        session.bus.on(OpsResumed, lambda event: self.install())

    def install(self) -> None:
        self.mode = self.unmounted()
        self.session.modes.put_in(self.mode)

    def unmounted(self) -> OpMode:
        """A mode that sees what another one of ours hands to it."""
        if not self._registered:
            for phase in (FORWARD, GRADIENTS, OPTIMIZER):
                self._registered.append((phase, MAKERS, self.session.births.made, True))
            for watcher in self.session.watchers:
                for phase, names, reaction, low_only in watcher.reactions():
                    self._registered.append((phase, frozenset(names), reaction, low_only))
            for phase, names, reaction, low_only in self.session.adapters.reactions():
                self._registered.append((phase, frozenset(names), reaction, low_only))
            private.hide_from_dynamo()
            self._unmounted = OpMode(self)
        return self._unmounted

    def remove(self) -> None:
        if self.mode is not None:
            self.session.modes.take_out(self.mode)
            self.mode = None

    def plan(self, func: Any) -> Plan:
        """Chooses, once, how to react to an op."""
        schema = getattr(func, "_schema", None)
        name = schema.name.partition("::")[2] if schema is not None else str(func)
        arguments = enumerate(schema.arguments) if schema is not None else ()
        written = tuple(i for i, arg in arguments if arg.alias_info is not None and arg.alias_info.is_write)
        asked: list[list[tuple[Reaction, bool]]] = [[], [], [], [], []]
        flow = self.session.flow
        if schema is not None and schema.name.startswith("aten::"):
            asked[FORWARD].append((flow.counts, False))
            if name in CUDA_FLOAT32:
                asked[FORWARD].append((flow.on_cuda_float32, False))
            if kind_of(name) is not None or not written:
                asked[FORWARD].append((flow.passes, True))
            if name == "add":
                asked[BACKWARD].append((flow.in_hook, True))
        for phase, names, reaction, low_only in self._registered:
            if name in names:
                asked[phase].append((reaction, low_only))
        in_place = written if name.endswith("_") else ()
        foreign = private.is_foreign(func)
        if name in REDUCTION_COLLECTIVES:
            in_place = (0,)  # their schemas do not say so
        by_phase = (tuple(asked[0]), tuple(asked[1]), tuple(asked[2]), tuple(asked[3]))
        by_kernel = written if foreign and not in_place else ()
        writes = bool(in_place or (written and not foreign))
        makes = not written and computes(func)
        before = tuple(reaction for reaction, _ in asked[BEFORE_WRITE])
        run, kind = private.kernel_of(func), kind_of(name)
        plan = Plan(func, run, name, kind, in_place, writes, makes, by_phase, before, foreign, by_kernel)
        self.plans[id(func)] = plan
        return plan

    def before_write(self, plan: Plan, func: Any, args: Any, kwargs: Any) -> None:
        try:
            for reaction in plan.before:
                reaction(plan.name, args, kwargs, None)
            self.session.updates.before_write(plan.name, func, args, kwargs)
        except Exception as error:
            self.session.guard.fault(f"one operation ({plan.name})", error)

    def react(self, plan: Plan, asked: Asked, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Asks the watchers; a fault of ours becomes a note and never reaches the user's program."""
        try:
            low = False
            if isinstance(out, Tensor):
                low = out.dtype in LOW
                if not low and plan.kind is not None:
                    self._high(plan.name, plan.kind, args, out)
            for reaction, low_only in asked:
                if low or not low_only:
                    reaction(plan.name, args, kwargs, out)
            if plan.written:
                self.session.writes.after(plan.name, args, plan.written)
            if plan.makes and self.session.window.phase == OPTIMIZER:
                self.session.updates.made(func, plan.name, args, kwargs, out)
            if plan.by_kernel:
                self.session.updates.by_kernel(func, args, kwargs)
                self.session.writes.by_kernel(plan.name, args, plan.by_kernel)
        except Exception as error:
            self.session.guard.fault(f"one operation ({plan.name})", error)

    def _high(self, name: str, kind: str, args: Any, out: Tensor) -> None:
        """Marks go through integers, which positions are first, and through float32 values without gradient."""
        flow, entering = self.session.flow, self.session.entering
        if not out.dtype.is_floating_point:
            flow.inherit(kind, args, out)
            return
        if entering.any and self.session.window.phase == FORWARD:
            entering.through(args, out)
        if kind != "reducing" and self.session.window.phase in (FORWARD, GRADIENTS):
            flow.raised(name, args, out)
