"""In-place writes: masters and parameters, accumulators of every kind, Kahan compensation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Cause, Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, GradientReset, GradientsRescaled, ParameterChangedUnseen, ParameterWritten
from ..operands import tensors_of, trains
from ..operations import BACKWARD, CLOSURE, FORWARD, GRADIENTS, OPTIMIZER, Heard, Op, Operations
from ..optable import COPIES, REDUCTION_COLLECTIVES, RESETS, SELF_UPDATES
from ..process.ledger import Ledger, Observation
from ..sites import in_user_hook, user_site
from ..trackers.holders import Holders
from ..trackers.kept import Totals
from ..trackers.lineage import CastOf, Flow
from ..trackers.micro_batches import MicroBatches
from ..trackers.modules import Modules
from ..trackers.replay import Replay
from ..trackers.tensors import Place, Record, Tensors
from ..trackers.window import Window
from . import Registration, Watcher
from .gradients import Gradients

DRAWS = frozenset({"randint", "randint_like", "random_", "random"})
BACKWARD_UPDATES = SELF_UPDATES | COPIES
ADDITIONS = frozenset({"add_", "sub_", "_foreach_add_", "_foreach_sub_"})
NO_MARKS: Mapping[str, Any] = {}
BITWISE = frozenset("add sub bitwise_and bitwise_or __and__ __or__ where lt gt le ge".split())
BITS = (torch.int32, torch.int64, torch.int16)


@dataclass(slots=True)
class Write:
    """In-place updates of one place in memory that no gradient flows through."""

    memory: Record
    dtype: Any
    shape: tuple[int, ...]
    site: Site | None
    cause: Cause | None = None
    """What put it into low precision."""
    clock: set[int] = field(default_factory=set)
    """The micro-batches it was written in: two of them make it long-lived."""
    sources: set[str] = field(default_factory=set)
    updates_itself: bool = False
    decays: bool = False
    """It is multiplied as well as added to: a moving average or a momentum, not a sum."""
    numbers: Totals = field(default_factory=Totals)


class Writes(Watcher):
    """What was written in place, by whom, and what float32 would have kept."""

    def __init__(
        self,
        bus: Bus,
        operations: Operations,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        micro_batches: MicroBatches,
        modules: Modules,
        gradients: Gradients,
        replay: Replay,
        holders: Holders,
    ) -> None:
        self._bus = bus
        self._window = window
        self._micro_batches = micro_batches
        self._gradients = gradients
        self._replay = replay
        self._ledger = ledger
        self._modules = modules
        self._holders = holders
        self.flow = flow
        self.tensors = tensors
        self._factors_since: dict[Record, int] = {}
        """0-d low-precision factors: the clock when each was first met."""
        self.hand_written_at: Site | None = None
        """Where a loop without an Optimizer updates its parameters."""
        operations.on(self._hear)
        bus.on(ParameterChangedUnseen, self._changed_unseen)

    def _gradient_reset(self, gradient: Tensor) -> None:
        leaf = self.tensors.of(gradient).gradient_owner(gradient)
        if leaf is not None:
            self._bus.tell(GradientReset(leaf))

    def reactions(self) -> Iterable[Registration]:
        yield OPTIMIZER, ("_to_copy",), self.rounded, False
        for phase in (OPTIMIZER, GRADIENTS):
            yield phase, ("clone", "sub", "_foreach_sub", "_foreach_clone"), self.differs, False
            yield phase, DRAWS, self.drawn, False
            yield phase, BITWISE, self.bits, False

    def rounded(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A low-precision copy of a wider value: of which one, and whether it rounds stochastically."""
        source = args[0]
        if out.dtype in LOW and source.dtype not in LOW:
            drawn = {"random": True} if "random" in self.flow.of(source) else {}
            self.flow.mark(out, cast_of=CastOf(self.tensors.learn(source), source.dtype), **drawn)

    def differs(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A copy of a parameter, and what its rounding lost: the copy less the parameter after the update."""
        for index, result in enumerate(tensors_of([out])):
            if result.dtype not in LOW:
                continue
            sources = _sources(args, index)
            if name.endswith("clone"):
                if self.tensors.is_parameter(sources[0]):
                    self.flow.mark(result, before=True)
                continue
            changed = next((s for s in sources if self.tensors.is_parameter(s)), None)
            if changed is not None and any("before" in self.flow.of(s) for s in sources):
                self.flow.mark(result, delta=self.tensors.learn(changed))

    def drawn(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Random integers: what stochastic rounding adds below the last place that is kept."""
        if out.dtype in BITS:
            self.flow.mark(out, random=True)

    def bits(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Integers, and the comparisons that choose between them, computed from random ones."""
        if not out.dtype.is_floating_point and any("random" in self.flow.of(a) for a in args):
            self.flow.mark(out, random=True)

    # -- after it

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
        known = [self.tensors.of(target) for target in targets]
        if any(each.is_gradient for each in known):
            self._of_gradients(name, targets, args)
            return
        if trains(args):
            return
        if name in RESETS:
            for target in targets:
                self._forget(target)
            return
        if name in ("mul_", "div_") and any(each.marks and "grad" in each.marks for each in known):
            self._bus.tell(GradientsRescaled())
        for index, target in enumerate(targets):
            sources = _sources(args[1:], index)
            if name in COPIES and any(self.tensors.is_gradient(s) or "grad" in self.flow.of(s) for s in sources):
                self.flow.mark(target, grad=True)
            if target.dtype in LOW and known[index].parameter is None:
                self._follow_compensation(name.removeprefix("_foreach_"), target, sources)
            self._book(name, target, known[index], sources)

    def by_kernel(self, written: tuple[int, ...], name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A library's kernel updates parameters: from a master, where one that it wrote too rounds to the parameter."""
        targets = targets_of(args, written)
        for target in filter(self.tensors.is_parameter, targets):
            master = next((t for t in targets if t.dtype not in LOW and _rounds_to(t, target)), None)
            if master is None:
                self._book_parameter(name, target, [])
            else:
                self._book_parameter("copy_", target, [master])

    def _in_backward(self, name: str, targets: list[Tensor], args: Any) -> None:
        """Gradients are summed there; a parameter is updated by an optimizer that lives in backward's hooks."""
        if name in RESETS:  # the framework has added this micro-batch to a sum of its own
            for target in targets:
                self._gradient_reset(target)
        elif name in BACKWARD_UPDATES:
            in_hook = bool(targets) and targets[0].dtype in LOW and name in SELF_UPDATES and in_user_hook()
            for index, target in enumerate(targets):
                sources = _sources(args[1:], index)
                if in_hook and self._micro_batches.has_shape(target) and not self._is_known(target):
                    self._book(name, target, self.tensors.of(target), sources)
                    write = self.of(target)
                    if write is not None:
                        write.sources.add("grad")
                rounds = name in COPIES and target.dtype in LOW and sources[0].dtype not in LOW
                if (rounds or name in SELF_UPDATES) and self.tensors.is_parameter(target):
                    self._book_parameter(name, target, sources)

    def _of_gradients(self, name: str, targets: list[Tensor], args: Any) -> None:
        if name in RESETS:
            for target in targets:
                self._forget(target)
                self._gradient_reset(target)
        else:
            self._gradients.wrote(name, targets, args)

    def _in_optimizer(self, name: str, targets: list[Tensor], args: Any) -> None:
        for index, target in enumerate(targets):
            if self.tensors.is_parameter(target):
                self._book_parameter(name, target, _sources(args[1:], index))
                continue
            self._factors(name, _sources(args[1:], index))
            if target.dtype in LOW:
                self._follow_compensation(name.removeprefix("_foreach_"), target, _sources(args[1:], index))
            if self.tensors.of(target).copies_parameter:
                self.tensors.learn(target).moved_by_optimizer = True

    def _forget(self, target: Tensor) -> None:
        """What is written over descends from nothing."""
        self._replay.forget(target)
        if self.tensors.of(target).lineage is not None:
            self.tensors.learn(target).lineage = None

    def _follow_compensation(self, name: str, target: Tensor, sources: list[Tensor]) -> None:
        """Kahan summation adds to a buffer what the parameter's rounding lost: the parameter before less after."""
        for source in sources:
            if name in COPIES and self.tensors.is_parameter(source):
                self.flow.mark(target, before=True)
            elif name == "sub_" and "before" in self.flow.of(target) and self.tensors.is_parameter(source):
                self.flow.mark(target, delta=self.tensors.learn(source))
            elif name in ("add_", "sub_", *COPIES):
                changed = self.flow.of(source).get("delta")
                if changed is not None and changed.moved_by is self.tensors.of(target):
                    self.tensors.learn(target).compensates = True
                    changed.writes = (changed.writes or set()) | {"kahan"}

    def _book(self, name: str, target: Tensor, known: Record, sources: list[Tensor]) -> None:
        if known.parameter is not None:
            self._factors(name, sources)
            self._book_parameter(name, target, sources)
            return
        if known.is_input:  # an input moved along its gradient, for as long as its batch lasts
            return
        if target.dtype in LOW:
            self._window.every_micro_batch_counts = True
        place = target.storage_offset(), target.numel()
        write: Write | None = known.updates.get(place) if known.updates else None
        if write is None:
            write = self._first_write(target, place)
        write.clock.add(self._window.clock)
        if name in SELF_UPDATES:
            write.updates_itself = True
            write.decays |= name.removeprefix("_foreach_") in ("mul_", "lerp_")
        for source in sources:
            origin = self.tensors.of(source)
            marks = origin.marks or NO_MARKS
            if name in COPIES and write.memory in marks.get("from", ()):
                write.updates_itself = True
            if origin.parameter is not None or "param" in marks:
                write.sources.add("param")
            if origin.is_gradient or "grad" in marks:
                write.sources.add("grad")
            if origin.is_loss:
                write.sources.add("loss")
        if write.updates_itself or name in COPIES:
            self._factors(name, sources)

    def _factors(self, name: str, sources: list[Tensor]) -> None:
        """Numbers in low precision that a long-lived value is multiplied by, or what is added to it."""
        if name in ("mul_", "lerp_") and sources and sources[-1].ndim == 0 and sources[-1].dtype in LOW:
            self._low_hyperparameter(Place(self.tensors.learn(sources[-1]), sources[-1]), "decay")
        for source in sources:
            for factor in self.flow.of(source).get("factors", ()):
                self._low_hyperparameter(factor, "decay" if name in COPIES else "factor")

    def _low_hyperparameter(self, number: Place, key: str) -> None:
        """A long-lived 0-d factor in low precision: an EMA decay of 0.999 is 1 in bfloat16.

        One whose making was not seen is long-lived if it is there again later. 0.5 is 0.5 in any dtype.
        """
        record = number.record
        since = self._factors_since.setdefault(record, self._window.clock)
        if record.expired or record.parameter is not None or (record.made_at is None and since == self._window.clock):
            return
        site = record.made_at or user_site()
        seen = self._ledger.once(
            ("factor", record),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[number.dtype],
                Role.OPTIMIZER_STATE,
                site,
                detail="a factor that long-lived values are multiplied by",
                attrs={"what": "hyperparameter", "key": key},
                confirmed=not self._ledger.measures,
            ),
        )
        held = number.tensor()
        if seen.count == 1 and held is not None:
            self._ledger.defer([held.float()], lambda values: self._is_rounded(seen, values[0]))

    @staticmethod
    def _is_rounded(seen: Observation, value: float) -> None:
        """0 and 1 are what small numbers and 0.999 become; other sixteenths were meant."""
        seen.confirmed |= value in (0.0, 1.0) or not (value * 16).is_integer()

    def _first_write(self, target: Tensor, place: tuple[int, int]) -> Write:
        """A place seen for the first time, with what made it low: its tensor may be a view that lives no longer."""
        known = self.tensors.learn(target)
        write = Write(known, target.dtype, tuple(target.shape), user_site())
        if known.updates is None:
            known.updates = {}
        known.updates[place] = write
        if target.dtype in LOW:
            write.cause = self._modules.why_low(target)
            write.site = (write.cause.site if write.cause else None) or known.made_at or write.site
            # A sum that began as a Python number: `total += loss` is out of place the first time.
            older = known.lineage
            if older is not None and older.start == self.flow.line():
                write.clock.add(older.clock)
        return write

    def _is_known(self, target: Tensor) -> bool:
        return self.tensors.is_gradient(target) or self.tensors.is_parameter(target)

    def _book_parameter(self, name: str, target: Tensor, sources: list[Tensor]) -> None:
        """Whether a parameter is updated in place, or only copied from a float32 master."""
        known = self.tensors.learn(target)
        if known.writes is None:
            known.writes = set()
        kinds = known.writes
        known.version += 1
        if self._window.phase != OPTIMIZER:
            self._bus.tell(ParameterWritten())
            if self.hand_written_at is None:
                self.hand_written_at = user_site()
        if target.dtype not in LOW:
            kinds.add("update")
            return
        for source in sources[:1]:
            if name in COPIES:
                marks = self.flow.of(source)
                if "random" in marks:
                    kinds.add("stochastic")
                    return
                cast = marks.get("cast_of")
                if source.dtype.is_floating_point and source.dtype not in LOW:
                    self._copied(known, kinds, source, self.tensors.learn(source))
                    return
                if cast and cast.dtype not in LOW and not cast.source.expired:
                    self._copied(known, kinds, source, cast.source)
                    return
            if source.dtype in LOW and name in ADDITIONS:
                known.moved_by = self.tensors.learn(source)
        if name not in RESETS:
            kinds.add("update")

    def _copied(self, known: Record, kinds: set[str], source: Tensor, origin: Record) -> None:
        """A parameter was copied from float32: from a master, if that is there again at the next step."""
        before, known.copied_from = known.copied_from, origin
        if self.tensors.of(source).by_optimizer or before is origin:
            kinds.add("copy")
            if source.dtype not in LOW:
                self.tensors.learn(source).is_master = True
        elif before is not None:
            kinds.add("update")

    def _changed_unseen(self, event: ParameterChangedUnseen) -> None:
        known = self.tensors.learn(private.local(event.parameter))
        known.writes = known.writes or {event.how}

    def leaves(self) -> list[Tensor]:
        """Parameters that were written to and are still there."""
        found = (known.parameter for known in self.tensors.living() if known.writes)
        return [leaf for leaf in map(self._holders.find, filter(None, found)) if leaf is not None]

    def of(self, tensor: Tensor) -> Write | None:
        """What was written to this very place."""
        updates = self.tensors.of(tensor).updates
        return updates.get((tensor.storage_offset(), tensor.numel())) if updates else None

    def living(self) -> list[Write]:
        """What is written to in memory that is still there."""
        return [write for known in self.tensors.living() if known.updates for write in known.updates.values()]


def _rounds_to(wide: Tensor, low: Tensor) -> bool:
    return wide is not low and wide.shape == low.shape and torch.equal(wide.to(low.dtype), low)


def targets_of(args: Any, written: tuple[int, ...]) -> list[Tensor]:
    if written == (0,) and isinstance(args[0], Tensor):  # nearly always, and an optimizer's loop has thousands
        return [args[0]]
    return tensors_of(args[index] for index in written if index < len(args))


def _sources(args: Any, index: int) -> list[Tensor]:
    """The tensors that make the one at this index: foreach ops take lists of each argument."""
    each = (arg[index : index + 1] if isinstance(arg, (list, tuple)) else (arg,) for arg in args)
    return [source for found in each for source in found if isinstance(source, Tensor)]
