"""What torch tells a trace, as typed values, and the bus that carries them: it knows no rule and no role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..model.vocabulary import Site
from .guard import Guard
from .observation import Observation
from .torch_private import GraphOps

# -- what torch itself tells, through the taps


class ParameterRegistered(NamedTuple):
    """A module is about to get this parameter under this name."""

    module: Any
    name: str
    parameter: Tensor


class BufferRegistered(NamedTuple):
    """A module is about to get this buffer."""

    buffer: Tensor


class ModuleRegistered(NamedTuple):
    """A module is about to get this one as a child."""

    module: Any
    name: str
    child: Any


class ModuleFound(NamedTuple):
    """This module was there, whole, before the trace began."""

    module: Any


class ModuleCast(NamedTuple):
    """A module's `to`, `half` or the like has run, inside of no other."""

    module: Any
    method: str
    before: Mapping[int, torch.dtype]
    """`id` of each parameter and buffer it had -> the dtype that was."""


class StateLoaded(NamedTuple):
    """A module's `load_state_dict` has run."""


class DefaultDtypeSet(NamedTuple):
    """`torch.set_default_dtype` has run."""


class WrapperMade(NamedTuple):
    """A framework's object that wraps modules or optimizers is being made."""

    made: Any


class OptimizerBuilt(NamedTuple):
    """An Optimizer's `__init__` has run."""

    optimizer: Any
    site: Site | None
    """The user's line that called it."""


class BackwardBegan(NamedTuple):
    """The autograd engine was called from outside of any backward; what came before is settled now."""

    roots: list[Tensor]
    gradient: Any
    """What the caller passed for the first root."""
    creates_graph: bool
    """The gradients will be differentiated again."""
    accumulates: bool
    """It adds to `.grad`; `autograd.grad` returns its results instead."""


class BackwardRuns(NamedTuple):
    """From here on ops are those of backward."""


class BackwardNested(NamedTuple):
    """Inside a backward, the engine was called for a part of the forward pass that was computed again just now."""

    roots: list[Tensor]


class BackwardEnded(NamedTuple):
    """The engine has run, or has raised: then there are no results."""

    accumulates: bool
    results: Any


class StepCalled(NamedTuple):
    """`optimizer.step` was called, inside no other optimizer's step; what came before is settled now."""

    optimizer: Any
    given: bool
    """It was given something, a closure as a rule."""


class StepRuns(NamedTuple):
    """From here on ops are those of the step."""


class StepReturned(NamedTuple):
    """That step was taken."""

    optimizer: Any


class StepFailed(NamedTuple):
    """That step raised, some time ago: no hook tells of it."""


class StepNested(NamedTuple):
    """An optimizer was called by another one's step, as the inner one of a wrapper is."""

    optimizer: Any


class ScalerBuilt(NamedTuple):
    """A GradScaler's `__init__` has run, or that of a subclass."""

    scaler: Any
    site: Site | None


class LossScaled(NamedTuple):
    """`scaler.scale` was called with these."""

    scaler: Any
    given: list[Tensor]
    scaled: list[Tensor]


class ScaleRead(NamedTuple):
    """The script asked for the scale: it may divide by it itself."""


class UnscaleBegan(NamedTuple):
    """`scaler.unscale_(optimizer)` was called."""

    scaler: Any
    optimizer: Any


class Unscaled(NamedTuple):
    """It has divided the gradients."""

    scaler: Any
    optimizer: Any


class ScalerUpdated(NamedTuple):
    """`scaler.update` has run."""

    scaler: Any


class ScalerRefused(NamedTuple):
    """A method of a GradScaler raised: the call came out of order."""

    scaler: Any
    error: BaseException


class ScalerStepBegan(NamedTuple):
    """`scaler.step(optimizer)` was called."""

    scaler: Any
    optimizer: Any
    unscales: bool
    """Nobody has called `unscale_` for it since the last update."""


class ScalerStepEnded(NamedTuple):
    """It returned, or raised (`failed`)."""

    scaler: Any
    optimizer: Any
    kernel_skipped: bool
    """The optimizer was called, and its fused kernel was told to do nothing."""
    failed: bool


class StepSkipped(NamedTuple):
    """A framework did not call its optimizer for a step: a gradient was inf or nan."""

    optimizer: Any


class AutocastMade(NamedTuple):
    """An autocast object was made."""

    region: Any
    dtype_given: bool
    """Its dtype is the caller's, not torch's default."""


class AutocastEntered(NamedTuple):
    """An autocast region was entered, as a `with` or as a decorator does it."""

    region: Any
    with_gradients: bool
    """Outside of no_grad."""


class AutocastLeft(NamedTuple):
    """The innermost region of this thread is about to be left."""


class OpRefused(NamedTuple):
    """torch raised in an op: the program may end now."""

    name: str
    args: Any
    error: BaseException


class GroupBegan(NamedTuple):
    """`init_process_group` was called."""


class GroupJoined(NamedTuple):
    """It has returned: this process has a rank."""

    rank: int
    world_size: int
    rendezvous: str
    """Where its ranks met: what no other group on this machine has."""


class Saved(NamedTuple):
    """`torch.save` was called with this."""

    content: Any


class OptimizerLoaded(NamedTuple):
    """An optimizer's `load_state_dict` was called with this."""

    optimizer: Any
    content: Any


class MetricGiven(NamedTuple):
    """A scheduler's `step` was called with this measure of how training goes."""

    scheduler: Any
    metric: Any


class LooksAgain(NamedTuple):
    """Between windows: something happened for which the trace is to look more closely."""


class GlanceBegan(NamedTuple):
    """Between windows, what is done with these storages is looked at until the next backward."""

    storages: frozenset[int]


class Glanced(NamedTuple):
    """It was."""

    done: frozenset[tuple[str, bool]]
    """(operation, whether it writes to one of them)"""
    operations: int
    """How many ran meanwhile."""


class CompileCalled(NamedTuple):
    """`torch.compile` was called."""

    backend: Any
    """Its name, or the function itself."""


class GraphCompiled(NamedTuple):
    """AOTAutograd made a graph: an op of one of them is (name, dtype of its result, bytes of that)."""

    aot_id: int
    stage: str
    """"forward", "backward", or "inference" where nothing is differentiated."""
    ops: GraphOps


# -- what the trackers make of it


class MicroBatchBegan(NamedTuple):
    """A backward that training goes through is about to begin."""

    follows_another: bool
    """It adds to the gradients of an earlier one."""


class PassDropped(NamedTuple):
    """The graph of a forward pass is gone, and no backward went through it."""


class StepBegan(NamedTuple):
    """An optimizer is about to take a step that trains."""

    optimizer: Any
    given: bool
    """As of StepCalled."""


class StepEnded(NamedTuple):
    """It has."""

    optimizer: Any


class StepUnseen(NamedTuple):
    """An optimizer has stepped, some time before the backward that now begins, and called no hook."""

    optimizer: Any


class ParameterWritten(NamedTuple):
    """The script itself wrote to a parameter, outside of any optimizer."""


class ParameterChangedUnseen(NamedTuple):
    """A low-precision parameter has another version than before the step, and no write to it was seen."""

    parameter: Tensor
    how: str
    """As a Record's `writes` calls it: "update", "stochastic"."""


class AddedUnscaled(NamedTuple):
    """Something that is no gradient was added to gradients that carry this scaler's scale."""

    scaler: Any
    site: Site | None


class GradientsRescaled(NamedTuple):
    """Gradients were multiplied by something that is not their own norm: a scale was taken out by hand, perhaps."""


class GradientReset(NamedTuple):
    """What `.grad` of this leaf holds is no sum of micro-batches any more, or is told of by another."""

    leaf: Any
    """As the tracker of tensors knows it."""


class Attempted(NamedTuple):
    """An optimizer stepped, or its step was skipped."""

    optimizer: Any
    skipped: bool
    scaler: Any = None
    """The GradScaler that called it, or did not."""


class Boundary(NamedTuple):
    """A step is over: numbers are read, stock is taken."""

    optimizers: tuple[Any, ...]
    """Those that made an attempt in it."""


class StepOver(NamedTuple):
    """Stock was taken: what was of this step alone is forgotten."""


class RestBegan(NamedTuple):
    """Of many steps to skip the first was looked at; until the last of them steps are only counted."""


class RestEnded(NamedTuple):
    """The step before the window begins: everything is looked at again."""


class WindowOpened(NamedTuple):
    """The steps to skip are over: every op is seen from now on."""


class BirthsMatter(NamedTuple):
    """Before the window, from here on: what is made now may be state, averages and sums of the traced steps."""


class BirthsOver(NamedTuple):
    """No op before the window is asked for any more, or every op is seen."""


class OpsPaused(NamedTuple):
    """Inside the window, ops are not seen for some micro-batches: they repeat those before."""


class OpsResumed(NamedTuple):
    """They are seen again."""


class WindowClosed(NamedTuple):
    """Enough steps were seen."""


class MayEndNow(NamedTuple):
    """What was just seen is about to end the program: it is to be written at once."""


class GoesOn(NamedTuple):
    """A step is over, and the window is not."""


class FactsAsked(NamedTuple):
    """The rank file is about to be written: whoever has something to say beside the ledger adds it to `told`."""

    told: list[Observation]


class FactsTold(NamedTuple):
    """All have said it: numbers are added, and what compares others' Observations."""

    told: list[Observation]


class TraceEnded(NamedTuple):
    """What was seen is written: all that is ours is taken out of torch."""


RARE = frozenset(
    {
        ParameterRegistered, BufferRegistered, ModuleRegistered, ModuleCast, StateLoaded, DefaultDtypeSet, WrapperMade,
        OptimizerBuilt, OptimizerLoaded, ScalerBuilt, Saved, MetricGiven, CompileCalled, GraphCompiled,
        FactsAsked, FactsTold,
    }
)  # fmt: skip
"""Events of no step: all their listeners hear them while the bus rests, too."""


E = TypeVar("E")
Listener = Callable[[Any], None]


class Bus:
    """Carries events to those who asked for their kind, in the order in which they asked.

    A listener that fails is noted in the report, and the others still hear. Once the trace is over nobody does.
    While the bus rests only those hear who asked to hear always: they count, and cost nothing that a step would show.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._listeners: dict[type, list[Listener]] = {}
        self._counting: dict[type, list[Listener]] = {}
        """Those of them that hear while the bus rests."""
        self.rests = False
        """Between the first and the last of many steps to skip."""

    def on(self, kind: type[E], act: Callable[[E], None], always: bool = False) -> None:
        """Has `act` called with every event of this kind; while the bus rests, only if it is to hear `always`.

        Who hears always computes nothing with tensors: for it alone, no mode is set aside.
        """
        self._listeners.setdefault(kind, []).append(act)
        if always:
            self._counting.setdefault(kind, []).append(act)

    def tell(self, event: Any) -> None:
        """Calls all listeners of this event, unseen by any mode and outside of autograd."""
        kind, guard = type(event), self._guard
        counting = self._counting.get(kind, ())
        listeners = counting if self.rests and kind not in RARE else self._listeners.get(kind, ())
        if not listeners or not guard.open:
            return
        if len(listeners) != len(counting):
            with guard.unseen():
                self._call(listeners, event)
            return
        # The same as _call, without a call: at rest that is all there is to do, at each step of a whole run.
        for act in listeners:
            try:
                act(event)
            except Exception as error:
                guard.fault(_words(act), error)
            if not guard.open:
                return

    def _call(self, listeners: Sequence[Listener], event: Any) -> None:
        for act in listeners:
            try:
                act(event)
            except Exception as error:
                self._guard.fault(_words(act), error)
            if not self._guard.open:  # one of them has ended the trace
                return

    @property
    def is_over(self) -> bool:
        """Whether the trace has ended: by one of those that were told something, perhaps."""
        return not self._guard.open

    def order(self) -> dict[str, list[str]]:
        """Event -> its listeners, in the order in which they hear it."""
        return {kind.__name__: [_words(act) for act in acts] for kind, acts in self._listeners.items()}


def _words(act: Listener) -> str:
    owner = getattr(act, "__self__", None)
    return f"{type(owner).__name__}.{act.__name__}" if owner is not None else getattr(act, "__qualname__", repr(act))
