"""Sorts in-place writes by what is written to: parameters, gradients, what lives long; and asks who knows of these."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..dtypes import LOW
from ..events import Bus, GradientReset, GradientsRescaled
from ..operands import any_low, in_graph, sources_of, targets_of
from ..operations import BACKWARD, CLOSURE, FORWARD, GRADIENTS, OPTIMIZER, Heard, Op, Operations
from ..optable import COPIES, REDUCTION_COLLECTIVES, RESETS, SELF_UPDATES
from ..sites import in_user_hook
from ..trackers.compensation import Compensation
from ..trackers.lineage import Flow
from ..trackers.long_lived import LongLived
from ..trackers.micro_batches import MicroBatches
from ..trackers.parameter_writes import ParameterWrites
from ..trackers.replay import Replay
from ..trackers.tensors import Record, Tensors
from ..trackers.window import Window
from . import Watcher
from .factors import Factors
from .gradients import Gradients

BACKWARD_UPDATES = SELF_UPDATES | COPIES


class Writes(Watcher):
    """Called at each in-place op of the traced steps, in every phase."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        micro_batches: MicroBatches,
        replay: Replay,
        gradients: Gradients,
        parameters: ParameterWrites,
        long_lived: LongLived,
        compensation: Compensation,
        factors: Factors,
    ) -> None:
        self._bus, self._window, self._tensors, self._flow = bus, window, tensors, flow
        self._micro_batches, self._replay, self._gradients = micro_batches, replay, gradients
        self._parameters, self._long_lived = parameters, long_lived
        self._compensation, self._factors = compensation, factors
        operations.on(self._hear)

    def _gradient_reset(self, gradient: Tensor) -> None:
        leaf = self._tensors.of(gradient).gradient_owner(gradient)
        if leaf is not None:
            self._bus.tell(GradientReset(leaf))

    def _hear(self, op: Op) -> Iterable[Heard]:
        for phase in (FORWARD, BACKWARD, GRADIENTS, OPTIMIZER) if op.written else ():
            yield Heard(phase, partial(self.after, op.written))
        for phase in (OPTIMIZER, CLOSURE) if op.by_kernel else ():
            yield Heard(phase, partial(self.by_kernel, op.by_kernel))

    def after(self, written: tuple[int, ...], name: str, args: Any, kwargs: Any, out: Any) -> None:
        phase = self._window.phase
        targets = targets_of(args, written)
        if phase == BACKWARD:
            self._in_backward(name, targets, args)
            return
        if name in REDUCTION_COLLECTIVES:
            return
        if not targets or not targets[0].dtype.is_floating_point:
            return
        if phase == OPTIMIZER:
            self._in_optimizer(name, targets, args)
            return
        known = [self._tensors.of(target) for target in targets]
        if any(each.is_gradient for each in known):
            self._of_gradients(name, targets, args)
            return
        if in_graph(args) and not any(map(_is_frozen_low, known)):  # an adapter is added to a frozen weight's data
            return
        if name in RESETS:
            for target in targets:
                self._forget(target)
            return
        if name in ("mul_", "div_") and any(each.marks and "grad" in each.marks for each in known):
            self._bus.tell(GradientsRescaled())
        for index, target in enumerate(targets):
            sources = sources_of(args[1:], index)
            if name in COPIES and any(self._tensors.is_gradient(s) or "grad" in self._flow.of(s) for s in sources):
                self._flow.mark(target, grad=True)
            if target.dtype in LOW and known[index].parameter is None:
                self._compensation.wrote(name.removeprefix("_foreach_"), target, sources)
            self._book(name, target, known[index], sources)

    def by_kernel(self, written: tuple[int, ...], name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A library's kernel updates parameters: from a master, where one that it wrote too rounds to the parameter."""
        targets = targets_of(args, written)
        for target in filter(self._tensors.is_parameter, targets):
            master = next((t for t in targets if t.dtype not in LOW and _rounds_to(t, target)), None)
            if master is None:
                self._parameters.book(name, target, [])
            else:
                self._parameters.book("copy_", target, [master])

    def _in_backward(self, name: str, targets: list[Tensor], args: Any) -> None:
        """Gradients are summed there; a parameter is updated by an optimizer that lives in backward's hooks."""
        if name in RESETS:  # the framework has added this micro-batch to a sum of its own
            for target in targets:
                self._gradient_reset(target)
        elif name in BACKWARD_UPDATES:
            in_hook = bool(targets) and targets[0].dtype in LOW and name in SELF_UPDATES and in_user_hook()
            for index, target in enumerate(targets):
                sources = sources_of(args[1:], index)
                if in_hook and self._micro_batches.has_shape(target) and not self._is_known(target):
                    self._book(name, target, self._tensors.of(target), sources)
                    write = self._long_lived.of(target)
                    if write is not None:
                        write.sources.add("grad")
                rounds = name in COPIES and target.dtype in LOW and sources[0].dtype not in LOW
                if (rounds or name in SELF_UPDATES) and self._tensors.is_parameter(target):
                    self._parameters.book(name, target, sources)

    def _of_gradients(self, name: str, targets: list[Tensor], args: Any) -> None:
        if name in RESETS:
            for target in targets:
                self._forget(target)
                self._gradient_reset(target)
        else:
            self._gradients.wrote(name, targets, args)

    def _in_optimizer(self, name: str, targets: list[Tensor], args: Any) -> None:
        wide = not self._flow.factored and not any_low(args)
        for index, (target, known) in enumerate(zip(targets, self._tensors.known(targets), strict=True)):
            if known.copies_parameter and known.parameter is None:
                known.moved_by_optimizer = True
            if wide:  # what it was computed from says nothing
                if known.parameter is not None:
                    self._parameters.updated(known)
                continue
            sources = sources_of(args[1:], index)
            if known.parameter is not None:
                self._parameters.book(name, target, sources)
                continue
            self._factors.wrote(name, sources)
            if target.dtype in LOW:
                self._compensation.wrote(name.removeprefix("_foreach_"), target, sources)

    def _forget(self, target: Tensor) -> None:
        """What is written over descends from nothing."""
        self._replay.forget(target)
        if self._tensors.of(target).lineage is not None:
            self._tensors.learn(target).lineage = None

    def _book(self, name: str, target: Tensor, known: Record, sources: list[Tensor]) -> None:
        if known.parameter is not None:
            self._factors.wrote(name, sources)
            self._parameters.book(name, target, sources)
        elif not known.is_input:  # an input is moved along its gradient for as long as its batch lasts
            write = self._long_lived.book(name, target, sources)
            if write.updates_itself or name in COPIES:
                self._factors.wrote(name, sources)

    def _is_known(self, target: Tensor) -> bool:
        return self._tensors.is_gradient(target) or self._tensors.is_parameter(target)


def _is_frozen_low(known: Record) -> bool:
    """Whether this is a module's low weight that nothing trains."""
    return known.parameter is None and (known.born_low or known.cast) is not None


def _rounds_to(wide: Tensor, low: Tensor) -> bool:
    return wide is not low and wide.shape == low.shape and torch.equal(wide.to(low.dtype), low)
