"""What the updates lost: of parameters and optimizer state at each step, of sums of micro-batches, of accumulators.

The exact result of an update is what float32 makes of the same ops and the same inputs; trackers/replay.py runs them.
Only tensors known to be one of these are counted. A tensor that holds inf or nan takes part in no share, but is counted
as not measured.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...model.evidence import worst_parts
from ...model.vocabulary import Part, Role
from .. import torch_private as private
from ..dtypes import LOW
from ..events import BackwardBegan, BackwardEnded, Bus, StepBegan, StepEnded, StepUnseen
from ..operands import any_low, in_graph, tensors_of
from ..operations import BACKWARD, BEFORE_WRITE, CLOSURE, FORWARD, OPTIMIZER, Heard, Op, Operations
from ..optable import ADDITIONS, COPIES, REDUCTION_COLLECTIVES
from ..process.ledger import Ledger, Observation
from ..trackers import samples
from ..trackers.contents import Contents
from ..trackers.flat_steps import FlatStep, flat_step
from ..trackers.kept import Numbers, Totals
from ..trackers.long_lived import LongLived
from ..trackers.modules import Modules
from ..trackers.optimizers import parameters
from ..trackers.replay import Replay, computes
from ..trackers.tensors import Leaf, Tensors
from ..trackers.window import Window
from . import Watcher

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
"""A number between dots: `blocks.3.norm.weight`."""
SECOND_MOMENT = re.compile(r"sq|second|nu$|^v$|var")


def lost(seen: Observation, total: Totals) -> None:
    """How many updates were rounded away, and how far the rest is off."""
    if total.should_move:
        seen.evidence["updates_lost"] = total.stuck / total.should_move
        if total.step2 > 0:
            seen.evidence["applied_update_error"] = math.sqrt(total.error2 / total.step2)


class Updates(Watcher):
    """The numbers of one session."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        modules: Modules,
        long_lived: LongLived,
        replay: Replay,
        contents: Contents,
    ) -> None:
        self._contents = contents
        self._window = window
        self._tensors = tensors
        self._ledger = ledger
        self._long_lived = long_lived
        self._modules = modules
        self.replay = replay
        self.sums = Totals()
        """Of gradients that several micro-batches were added to."""
        self._flat: FlatStep | None = None
        """The step that is going on, where it is measured as a whole and its ops need not be followed."""
        self._state: weakref.WeakKeyDictionary[Any, dict[tuple[str, Any], Totals]] = weakref.WeakKeyDictionary()
        """Optimizer -> (name, dtype) of its state -> numbers."""

        operations.on(self._hear)
        bus.on(BackwardBegan, self._backward_began)
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(StepBegan, self._step_began)
        bus.on(StepEnded, self._step_ended)
        bus.on(StepUnseen, lambda event: self.finish())

    # -- ops

    def _hear(self, op: Op) -> Iterable[Heard]:
        if op.writes and not op.by_kernel:
            yield Heard(BEFORE_WRITE, partial(self.before_write, op.func))
        if op.by_kernel or (not op.writes and computes(op.func)):
            act = partial(self.by_kernel if op.by_kernel else self.made, op.func)
            yield Heard(OPTIMIZER, act)
            yield Heard(CLOSURE, act)

    def before_write(self, func: Any, name: str, args: Any, kwargs: Any, out: None) -> None:
        """Follows an op that writes to what it is given, before it happens."""
        in_step = self._follows(args)
        if in_step and self._flat is not None:
            return
        if not samples.limit() or not (self.replay or any_low(args) or kwargs):
            return
        if in_step:
            self.replay.write(func, args, kwargs, keeps=False)
            return
        phase = self._window.phase
        ends = name in REDUCTION_COLLECTIVES
        targets = tensors_of(args[:1]) if ends else self.replay.targets(func, args, kwargs)
        low = [target for target in targets if target.dtype in LOW]
        if not low:
            return
        gradient = self._tensors.is_gradient(low[0])
        scales = gradient and phase != BACKWARD and name not in ADDITIONS
        if ends or scales or (phase == BACKWARD and name in COPIES):
            # What other ranks add, what a bucket brings back, or a clip, is no part of this rank's sum: that ends here.
            self.finish({private.storage_key(target) for target in low})
        elif (
            (phase == FORWARD and in_graph(args))
            or (phase == OPTIMIZER)
            or (phase == BACKWARD and not gradient and not self._tensors.is_parameter(low[0]))
        ):
            for target in low:
                self.replay.forget(target)
        else:
            self.replay.write(func, args, kwargs, keeps=True)

    def made(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Follows the values that a step computes."""
        if self._flat is not None:
            return
        if (self.replay or any_low((*args, out)) or kwargs) and self._follows(args):
            self.replay.made(func, name, args, kwargs, out)

    def by_kernel(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A library's kernel has written to what it was given."""
        if self._flat is None and self._follows(args):
            self.replay.overwritten(func, args, kwargs or {})

    def _follows(self, args: Any) -> bool:
        """Whether this op is part of an optimizer's step, not of the forward pass of a closure."""
        return self._window.phase == OPTIMIZER and not in_graph(args)

    # -- steps

    def _step_began(self, event: StepBegan) -> None:
        """What was followed up to here ends: the step reads what there is."""
        self.finish()
        self.replay.begin()
        whole = self._window.tracing and samples.limit() and not event.given
        self._flat = None
        if whole:
            self._flat = flat_step(event.optimizer)

    def _backward_began(self, event: BackwardBegan) -> None:
        """A closure's backward inside a step: where parameters have moved already, it is more than one step."""
        if self._window.phase == OPTIMIZER:
            self._flat = None
            self.replay.begin(self.replay.spoiled or self.replay.moved)

    def _backward_ended(self, event: BackwardEnded) -> None:
        """From here on the step reads the gradients that there are."""
        if self._window.phase == OPTIMIZER:
            self.finish()
            self.replay.begin(self.replay.spoiled)

    def _step_ended(self, event: StepEnded) -> None:
        """Compares parameters and state with what float32 would have made of them."""
        flat, self._flat = self._flat, None
        if flat is not None:
            of_state = self._state.setdefault(event.optimizer, {})

            def use_state(name: str, dtype: Any, should: float, stuck: float) -> None:
                total = of_state.setdefault((name, dtype), Totals())
                total.should_move += should
                total.stuck += stuck

            flat.measure(self._ledger, lambda parameter, numbers: self._of(parameter).add(numbers), use_state)
        elif self.replay and not self.replay.spoiled:
            self._measure_step(event.optimizer)
        self.replay.begin()

    def _measure_step(self, optimizer: Any) -> None:
        totals: list[Callable[[], Totals]] = []
        pairs = []
        for parameter in parameters(optimizer):
            own = private.local(parameter)
            shadow = self.replay.shadow_of(own) if own.dtype in LOW else None
            if shadow is not None:
                pairs.append((own, shadow))
                totals.append(partial(self._of_leaf, self._tensors.meet(parameter)))
        of_state = self._state.setdefault(optimizer, {})
        for held in self._contents.kept(optimizer):
            shadow = self.replay.shadow_of(held.tensor) if held.tensor.dtype in LOW else None
            if shadow is not None:
                pairs.append((held.tensor, shadow))
                totals.append(partial(of_state.setdefault, (held.name, held.tensor.dtype), Totals()))
        doubtful: list[float] = []
        self._ledger.defer(self.replay.doubts(), doubtful.extend)

        def use(index: int, numbers: Numbers) -> None:
            if not any(doubtful):
                totals[index]().add(numbers)

        self.replay.measure(pairs, use)

    def finish(self, storages: set[int] | None = None) -> None:
        """Measures what was updated (in these storages) outside of an optimizer's step, up to now."""
        pairs = list(self.replay.others(storages))
        totals = [self._of_other(tensor) for tensor, _ in pairs]

        def use(index: int, numbers: Numbers) -> None:
            total = totals[index]
            if total is not None:
                total.add(numbers)

        self.replay.measure(pairs, use)

    def _of(self, parameter: Tensor) -> Totals:
        return self._of_leaf(self._tensors.meet(parameter))

    @staticmethod
    def _of_leaf(leaf: Leaf) -> Totals:
        if leaf.numbers is None:
            leaf.numbers = Totals()
        total: Totals = leaf.numbers
        return total

    def _of_other(self, tensor: Tensor) -> Totals | None:
        """Whose numbers these are; None where nobody asks for them."""
        known = self._tensors.of(tensor)
        if known.parameter is not None:
            return self._of_leaf(known.leaf_at(tensor) or known.parameter)
        if known.is_gradient:
            return self.sums
        write = self._long_lived.of(tensor)
        return write.numbers if write is not None else None

    # -- evidence

    def of_parameters(self, seen: Observation, held: Sequence[Tensor]) -> None:
        """How much of the updates of these parameters their dtype rounded away, and of which the most."""
        total = Totals()
        rows: dict[tuple[str, bool], tuple[list[str], Totals]] = {}
        for parameter in held:
            mine = self._numbers(parameter)
            if mine is None:
                continue
            total.join(mine)
            if mine.should_move:
                name = self._modules.name(parameter)
                pattern = INDEX.sub("*", name)
                names, sums = rows.setdefault((pattern, mine.stuck == mine.should_move), ([], Totals()))
                names.append(name)
                sums.join(mine)
        lost(seen, total)
        if total.infinite:
            seen.evidence["infinite"] = sum(1 for parameter in held if self._is_infinite(parameter))
        self._tell_unmeasured(seen, held)
        seen.parts = worst_parts(
            Part(pattern if len(names) > 1 else names[0], len(names), {"updates_lost": sums.stuck / sums.should_move})
            for (pattern, _), (names, sums) in rows.items()
            if pattern
        )

    def _tell_unmeasured(self, seen: Observation, held: Sequence[Tensor]) -> None:
        """How many of these were updated and have no number: of long ones a sample may not do, as for a matmul."""
        own = [private.local(parameter) for parameter in held if self._numbers(parameter) is None]
        left = [tensor for tensor in own if "update" in self._tensors.of(tensor).writes]
        long = sum(1 for tensor in left if tensor.numel() > samples.limit())
        if samples.limit() and long:
            seen.evidence["beyond_sample"] = long
        if samples.limit() and len(left) > long:
            seen.evidence["unmeasured"] = len(left) - long

    def _numbers(self, parameter: Tensor) -> Totals | None:
        leaf = self._tensors.leaf(parameter)
        return leaf.numbers if leaf is not None else None

    def _is_infinite(self, parameter: Tensor) -> bool:
        mine = self._numbers(parameter)
        return mine is not None and mine.infinite > 0

    def of_state(self, seen: Observation, optimizer: Any, names: Iterable[str], dtype: Any) -> None:
        """How much of the second moment, or of all state, could not move."""
        names = list(names)
        chosen = [name for name in names if SECOND_MOMENT.search(name)] or names
        total, held = Totals(), self._state.get(optimizer, {})
        for name in chosen:
            total.join(held.get((name, dtype), Totals()))
        if total.should_move:
            seen.evidence["state_frozen"] = total.stuck / total.should_move

    def of_sums(self, seen: Observation, total: Totals) -> None:
        """The relative error of a low-precision sum of micro-batch gradients against the float32 sum."""
        if total.exact2 > 0:
            seen.evidence["accumulation_loss"] = math.sqrt(total.error2 / total.exact2)

    def complete(self, told: list[Observation]) -> None:
        """Every low-precision sum of gradients in `.grad` carries what all of them lost."""
        for seen in told:
            sums = seen.role is Role.GRADIENT_ACCUMULATION and seen.attrs.get("what") != "buffer"
            if sums and seen.dtype != "float32":
                self.of_sums(seen, self.sums)
