"""PA202 to PA207, PA212 and PA804: what a GradScaler is asked to do, in which order on each path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import libcst as cst

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language import conditions
from precaudit.static.language.conditions import State
from precaudit.static.language.values import (
    FALSE,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Param,
    Scaler,
    Spot,
    Value,
    float_constant,
    options,
    truth,
)
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import operands, optimizers, scaling

EXTREME_SCALE = 2.0**24

FIXED_INTERVAL = 1_000_000
"""Steps between two growths of the loss scale from which it is as good as fixed."""

WORD = re.compile(r"[A-Za-z_]\w*")

E = TypeVar("E")

Which = tuple[int, bool]
"""An optimizer: the identity of its store; whether it is that of a later turn of a loop, where one stands for all."""

# What has happened on a path. No NamedTuples: those of two kinds with equal fields would be one event.


@dataclass(frozen=True, slots=True)
class Pending:
    """A backward pass made gradients that carry this scaler's scale, and no step has used them yet."""

    scaler: int


@dataclass(frozen=True, slots=True)
class Unscaled:
    """The scaler unscaled this optimizer's gradients. `each_turn`: no condition stands before it in its loop."""

    scaler: int
    optimizer: Which
    each_turn: bool = False


@dataclass(frozen=True, slots=True)
class Clipped:
    """Gradients were clipped while they carried this scaler's scale."""

    scaler: int
    node: Any


@dataclass(frozen=True, slots=True)
class Stepped:
    """The scaler stepped this optimizer, and was not updated since."""

    scaler: int
    optimizer: Which


@dataclass(frozen=True, slots=True)
class Updated:
    """The scaler was updated after a step, and no backward pass followed."""

    scaler: int
    node: Any


@dataclass(frozen=True, slots=True)
class ChangedByHand:
    """Gradients were changed in place, which may have unscaled them."""


@dataclass(frozen=True, slots=True)
class ScaledByRunner:
    """A framework scaled the loss of a backward pass, and nothing unscaled the gradients since."""

    node: Any


@dataclass(frozen=True, slots=True)
class SteppedByScaler:
    """Some scaler stepped this optimizer, and no backward pass followed."""

    optimizer: Which


def listen(bus: Bus) -> None:
    LossScaling(bus)


class LossScaling:
    """Keeps on each path what was scaled, unscaled, clipped and stepped, and says where the order is wrong."""

    def __init__(self, bus: Bus) -> None:
        self._enabled_if: dict[int, conditions.Condition] = {}
        """By the identity of a scaler's store: the condition that it was given as `enabled`."""
        self._losses: dict[int, set[str]] = {}
        """By the same: the dtypes of the losses that it scaled."""
        self._updates: set[int] = set()
        self._never_updated: list[tuple[int, Spot]] = []
        self._lent: list[set[Unscaled]] = []
        """What is true only while the optimizers run that scalers step."""
        self._spots: dict[Any, Spot] = {}
        self._penalty: Spot | None = None
        """Where gradients of a scaled value were taken, to be differentiated again."""
        on = partial(bus.on, low_only=False)
        on("GradScaler", self._made)
        on("scaler.scale", self._scaled)
        on("scaler.unscale_", self._unscaled)
        on("scaler.steps", self._steps)
        on("scaler.step", self._stepped)
        on("scaler.update", self._updated)
        on(
            "scaler.reset",
            lambda op: _note(op.run, lambda s: _without(s, (Stepped, Unscaled), _identity(op.operand(0)))),
        )
        on("runner.prepare", lambda op: self._float16_gradients(op, op.operand(0)))
        on("runner.backward", lambda op: _note(op.run, lambda s: s | {ScaledByRunner(self._node(op))}))
        on("runner.unscale", lambda op: _forget(op.run, ScaledByRunner))
        on("optimizer.step", self._optimizer_steps)
        on("backward", self._backward)
        on("backward.gradient", self._from_gradient)
        on("autograd.grad", self._differentiated)
        on("zero_grad", lambda op: _forget(op.run, Clipped, ScaledByRunner, SteppedByScaler))
        on("clip_grad", self._clips)
        on("gradient.changed", _changed)
        bus.on_end(self._end)

    def _node(self, op: Op) -> Any:
        """The node of a call, whose place is kept for when something is found."""
        self._spots.setdefault(op.node, op.spot)
        return op.node

    def _made(self, op: Op) -> None:
        made = op.result
        if not isinstance(made, Scaler):
            return
        if made.enabled is None and isinstance(op.node, cst.Call):
            for asked in (arg for arg in op.node.args if arg.keyword is not None and arg.keyword.value == "enabled"):
                self._enabled_if[id(made.store)] = conditions.formula(op.run.interpreter, asked.value)
        if made.enabled is False:
            return
        add = partial(op.run.facts.add, Kind.LOSS_SCALING, op.spot, "", Role.LOSS_SCALE, None, extreme=True)
        growth = float_constant(op.kwargs.get("growth_interval"))
        if (growth is not None and growth >= FIXED_INTERVAL) or float_constant(op.kwargs.get("growth_factor")) == 1.0:
            add("it never grows back after an overflow halved it", dynamic=False)
        scale = op.kwargs.get("init_scale")
        if scale is None:
            scale = next((a for a in op.operands[1:] if float_constant(a) is not None), None)
        value = float_constant(scale)
        if value is not None and value > EXTREME_SCALE:
            detail = f"init_scale={value:g} overflows float16 gradients until it has been halved often enough"
            add(detail, dynamic=True, scale=value)

    def _scaled(self, op: Op) -> None:
        made, loss = op.operands
        marks = operands.marks_of([loss])
        if "penalty" in marks and self._penalty is not None:
            because = ("they are penalised in the loss here", op.spot)
            op.run.facts.add(Kind.OP, self._penalty, "", None, because, op="gradient-penalty-scaled")
        kind = "float16" if "float16" in marks else "bfloat16" if "bfloat16" in marks else "unknown"
        self._losses.setdefault(_identity(made), set()).add(kind)

    def _differentiated(self, op: Op) -> None:
        """`torch.autograd.grad(root, …)`, whose gradients may be penalised in a loss."""
        if self._carries_scale(op, op.operand(0)) and truth(op.kwargs.get("create_graph", FALSE)):
            self._penalty = op.spot

    def _from_gradient(self, op: Op) -> None:
        self._carries_scale(op, op.operand(0))

    def _backward(self, op: Op) -> None:
        _forget(op.run, SteppedByScaler)
        self._carries_scale(op, op.operand(0))

    def _carries_scale(self, op: Op, root: Value) -> bool:
        """Whether the gradients that begin at this value carry a scale; notes whose."""
        keys = [int(m.split(":")[1]) for m in operands.marks_of([root]) if m.startswith("scaler:")]
        training, states = op.run.training, op.run.interpreter.paths
        single = len(training.optimizers) + len(training.custom) == 1
        for key in keys:
            lingers = [_waits(state, key, False) for state in states]
            if states and single and (all(lingers) or any(_waits(state, key, True) for state in states)):
                _misuse(op, "backward-after-unscale", False)
            _note(op.run, lambda s, key=key: _without(s, Updated, key) | {Pending(key)})
        return bool(keys)

    def _unscaled(self, op: Op) -> None:
        key, which, states = _identity(op.operand(0)), _which(op, 1), op.run.interpreter.paths
        if isinstance(op.operand(0), Opaque):
            _note(op.run, lambda s: s | {Unscaled(key, which)})
            return
        done, always = Unscaled(key, which), Unscaled(key, which, each_turn=True)
        twice = states and (all(done in s for s in states) or any(always in s for s in states))
        # Where a step came between, what is missing is the update, which is told there.
        if twice and not all(Stepped(key, which) in s for s in states):
            _misuse(op, "unscale-twice", True)
        # What no condition guards happens in each turn of the loop, whether or not a step follows.
        each_turn = op.run.interpreter.each_turn
        _note(op.run, lambda s: s | {done} | ({always} if each_turn(s) else frozenset()))
        self._float16_gradients(op, op.operand(1))

    def _steps(self, op: Op) -> None:
        """A scaler is about to step: a wrapper's `param_groups` are unscaled before its own `step` runs."""
        made, optimizer = op.operand(0), op.operand(1)
        self._float16_gradients(op, optimizer)
        unscaled = Unscaled(_identity(made), _which(op, 1))
        by_hand = all(unscaled in state for state in op.run.interpreter.paths)
        lent = not by_hand and any(isinstance(option, Instance) for option in options(optimizer))
        self._lent.append({unscaled} if lent else set())
        if lent:
            _note(op.run, lambda s: s | {unscaled})

    def _stepped(self, op: Op) -> None:
        made, run = op.operand(0), op.run
        key, which = _identity(made), _which(op, 1)
        if isinstance(made, Scaler) and (lent := self._lent.pop()):
            _note(run, lambda s: s - lent)
        states = run.interpreter.paths
        if isinstance(made, Scaler) and made.enabled is False:
            return
        because = ("the scaler steps here", op.spot)
        for clipped in _events(states, Clipped, key):
            run.facts.add(Kind.CLIP, self._spots[clipped.node], "", Role.GRADIENT, because, "", scaled=True)
        if isinstance(made, Opaque):
            if any(Pending(key) in state for state in states):
                _note(run, lambda s: _without(s, (Pending, Clipped, Unscaled), key))
            return
        again = Stepped(key, which)
        if states and all(again in s for s in states):
            run.facts.add(Kind.SCALER_STEP, op.spot, update="missing")
        elif any(again in s for s in states):
            self._never_updated.append((key, op.spot))
        stale = _events(states, Updated, key)
        if stale and all(_events([s], Updated, key) for s in states):
            carried = ("this optimizer's gradients carry the scale from before that update", op.spot)
            at = self._spots[stale[0].node]
            run.facts.add(Kind.SCALER_CALL, at, "", None, carried, misuse="update-per-optimizer", raises=False)
        done = {again, SteppedByScaler(which)}
        _note(run, lambda s: (_without(s, (Pending, Clipped), key) - {ChangedByHand()}) | done)

    def _updated(self, op: Op) -> None:
        made, states = op.operand(0), op.run.interpreter.paths
        if not isinstance(made, Scaler):
            return
        key, node = _identity(made), self._node(op)
        self._updates.add(key)
        waiting = [s for s in states if Pending(key) in s]
        idle = not any(isinstance(e, (Stepped, Unscaled)) for s in states for e in s)
        # A second update in a row finds as little to go by as one before any step; a scale that is given needs nothing.
        again = all(_events([s], Updated, key) for s in states)
        given = len(op.operands) > 1
        if made.enabled and idle and states and not given and (len(waiting) == len(states) or again):
            _misuse(op, "update-without-step", True)

        def change(state: State) -> State:
            stepped = bool(_events([state], Stepped, key))
            return _without(state, (Stepped, Unscaled), key) | ({Updated(key, node)} if stepped else frozenset())

        _note(op.run, change)

    def _clips(self, op: Op) -> None:
        """Gradients are clipped: noted on each path, and reported when the scaler steps on that path."""
        limit = op.argument(0, "limit")
        if (isinstance(limit, Number) and limit.from_scale) or float_constant(limit) == float("inf"):
            return
        states = op.run.interpreter.paths
        by_runner = _events(states, ScaledByRunner)
        if by_runner and all(_events([s], ScaledByRunner) for s in states):
            because = ("the loss is scaled here", self._spots[by_runner[0].node])
            op.run.facts.add(Kind.CLIP, op.spot, "", Role.GRADIENT, because, "", scaled=True)
            return
        pending = [s for s in states if self._pending(s)]
        if pending and not any(_looked_after(s) for s in pending):
            node = self._node(op)
            _note(op.run, lambda s: s | {Clipped(key, node) for key in self._pending(s)})

    def _optimizer_steps(self, op: Op) -> None:
        """`optimizer.step()`, called by the user and not by a scaler."""
        made, states = op.operand(0), op.run.interpreter.paths
        pending = [s for s in states if self._pending(s)]
        if pending and len(pending) == len(states) and not any(_looked_after(s) for s in states):
            op.run.facts.add(Kind.OPTIMIZER_STEP, op.spot, gradients="scaled", autocast=False)
        twice = states and all(SteppedByScaler(_which(op, 0)) in s for s in states)
        if twice and isinstance(made, Optimizer):
            op.run.facts.add(Kind.SCALER_CALL, op.spot, misuse="step-beside-scaler", raises=False)

    def _pending(self, state: State) -> set[int]:
        """The scalers whose gradients wait for a step on this path, without those that are switched off there."""
        keys = {found.scaler for found in _events([state], Pending)}
        asked = {key: self._enabled_if[key] for key in keys if key in self._enabled_if}
        assumed = conditions.assumptions(state) if asked else {}
        return keys - {key for key, condition in asked.items() if conditions.known(condition, assumed) is False}

    def _float16_gradients(self, op: Op, optimizer: Value) -> None:
        """A scaler unscales the gradients of float16 parameters, which PyTorch refuses."""
        for param in scaling.stepped_parameters(op.run, optimizer):
            if isinstance(param, Param) and param.dtype == frozenset({"float16"}) and optimizers.trainable(param):
                made_low = param.store.get("origin") if "float16" in (param.store.get("dtype") or ()) else None
                spot = param.store.get("spot") or made_low or op.spot
                because = ("they are unscaled here", op.spot)
                detail = 'PyTorch raises "Attempting to unscale FP16 gradients."'
                op.run.facts.add(Kind.UNSCALE, spot, "float16", None, because, detail)
                return

    def _end(self, run: Run) -> None:
        """A scaler that only ever scales bfloat16, and one that is updated nowhere."""
        for made in run.training.scalers:
            if made.enabled and self._losses.get(id(made.store)) == {"bfloat16"} and made.spot is not None:
                add = partial(run.facts.add, Kind.LOSS_SCALING, made.spot, "bfloat16", Role.LOSS_SCALE, None, "")
                add(needed=False, dynamic=True)
        for key, spot in self._never_updated:
            if key not in self._updates:
                run.facts.add(Kind.SCALER_STEP, spot, update="missing")


def _identity(value: Value) -> int:
    """Of a scaler or an optimizer, by the store that it shares with its copies."""
    found = options(value)[0]
    return id(found.store) if isinstance(found, (Scaler, Optimizer, Instance, Opaque)) else id(found)


def _which(op: Op, index: int) -> Which:
    """Of an optimizer among the operands: it, or another of those that a loop's item stands for."""
    key, later = _identity(op.operand(index)), op.run.interpreter.later
    asked = op.node.args[:1] if later and isinstance(op.node, cst.Call) else ()
    words = {word for arg in asked for word in WORD.findall(op.run.interpreter.text(arg.value))}
    return key, key in later or not later.isdisjoint(words)


def _misuse(op: Op, word: str, raises: bool) -> None:
    op.run.facts.add(Kind.SCALER_CALL, op.spot, misuse=word, raises=raises)


def _note(run: Run, change: Callable[..., State]) -> None:
    """Changes what has happened on every path that leads here."""
    run.interpreter.set_paths(change(state) for state in run.interpreter.paths)


def _forget(run: Run, *kinds: type) -> None:
    _note(run, lambda s: frozenset(e for e in s if not isinstance(e, kinds)))


def _without(state: State, kinds: type | tuple[type, ...], scaler: int) -> State:
    """A path's events without those of these kinds that are of this scaler."""
    return frozenset(e for e in state if not isinstance(e, kinds) or getattr(e, "scaler", None) != scaler)


def _events(states: Iterable[State], kind: type[E], scaler: int | None = None) -> list[E]:
    """The events of one kind on these paths, those of one scaler where it is named."""
    found = [e for state in states for e in state if isinstance(e, kind)]
    return found if scaler is None else [e for e in found if getattr(e, "scaler", None) == scaler]


def _waits(state: State, scaler: int, each_turn: bool) -> bool:
    """Whether gradients that this scaler unscaled still wait for their step."""
    unscaled = [e for e in _events([state], Unscaled, scaler) if e.each_turn == each_turn]
    return any(Stepped(scaler, e.optimizer) not in state for e in unscaled)


def _looked_after(state: State) -> bool:
    """Whether gradients were unscaled on this path, by a scaler or perhaps by hand."""
    return any(isinstance(e, (Unscaled, ChangedByHand)) for e in state)


def _changed(op: Op) -> None:
    """Gradients were changed in place by hand."""
    if _events(op.run.interpreter.paths, Pending):
        _note(op.run, lambda s: s | {ChangedByHand()})
