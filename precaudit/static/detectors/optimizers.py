"""PA101, PA102, PA301, PA302, PA305 and PA811: what an optimizer holds when it steps, in which dtype, and where."""

from __future__ import annotations

from functools import partial
from typing import Any

from precaudit.model.vocabulary import Kind, Role, rounds_to
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    Dict,
    DType,
    Dtypes,
    Instance,
    Optimizer,
    Param,
    Scaler,
    Spot,
    Tensor,
    Value,
    float_constant,
    is_low,
)
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import handwritten
from precaudit.static.overlays.torch.optimizers import is_adapter, trainable
from precaudit.static.overlays.torch.training import in_a_test

EXAMINED, CAST_AFTER, LOW_SLOTS = "examined", "cast_after", "low_slots"
"""What is kept with an optimizer on each path: it was looked at; its parameters were cast; slots that became low."""
COUNTERS = ("step", "t", "steps", "iter", "count")


def listen(bus: Bus) -> None:
    on = partial(bus.on, low_only=False)
    on("optimizer.step", _under_autocast)
    on("scaler.step", lambda op: _under_autocast(op) if isinstance(op.operand(0), Scaler) else None)
    on("optimizer.stepped", _stepped)
    on("module.cast", _cast)
    Slots(bus)
    bus.on_end(_end)


def _end(run: Run) -> None:
    """Optimizers that nobody was seen to step; float16 adapters whose loss nobody scales."""
    for made in run.training.optimizers:
        if not made.store.get(EXAMINED) and not in_a_test(made.store["spot"]):
            _examine(run, made)
    if run.training.unscaled and run.training.unscaled_backward:
        for spot, made_low in run.training.low_adapters:
            because = ("they became float16 here", made_low)
            run.facts.add(Kind.HOLDS, spot, "float16", Role.ADAPTER_PARAMETER, because, "", loss_scaling="none")


def _under_autocast(op: Op) -> None:
    region = op.run.autocast()
    if region is not None and region.spot is not None and region.enabled is not False:
        because = ("the region begins here", region.spot)
        op.run.facts.add(Kind.OPTIMIZER_STEP, op.spot, "", None, because, gradients="unscaled", autocast=True)


def _stepped(op: Op) -> None:
    """The update ran: its parameters' dtypes at this moment are what it updates."""
    made, facts = op.operand(0), op.run.facts
    if not isinstance(made, Optimizer):
        return
    _examine(op.run, made)
    spot, dtype = made.store.get(CAST_AFTER, (None, None))
    if is_low(dtype):
        because = ("the optimizer was built here", made.store["spot"])
        facts.add(Kind.CAST, spot, dtype, None, because, after_optimizer=True)
    for _, (spot, dtype, because, detail, attrs) in made.store.get(LOW_SLOTS, ()):
        facts.add(Kind.HOLDS, spot, dtype, Role.OPTIMIZER_STATE, because, detail, **attrs)
    made.store[EXAMINED] = True


def _cast(op: Op) -> None:
    """Remembers a cast of parameters that an optimizer already holds; it counts when that optimizer steps again."""
    asked = op.kwargs["dtype"]
    cast = {id(param.store) for param in op.operands if isinstance(param, Param)}
    for made in op.run.training.optimizers:
        held = [p for p in made.store["params"] if isinstance(p, Param) and id(p.store) in cast]
        if any(trainable(p) for p in held):
            op.run.interpreter.heap.put(
                made.store, CAST_AFTER, (op.spot, asked.names if isinstance(asked, DType) else None)
            )


class Slots:
    """What optimizers written here keep for each parameter, until it is known whether a scale is kept beside it."""

    def __init__(self, bus: Bus) -> None:
        self._names: set[tuple[int, str]] = set()
        """(identity of a class, name of a slot)"""
        self._one_byte: list[tuple[int, str, tuple[Any, ...]]] = []
        bus.on("state.stored", self._stored, low_only=False)
        bus.on_end(self._end)

    def _stored(self, op: Op) -> None:
        name = getattr(op.operand(1), "value", None)
        instance = handwritten.current_optimizer(op.run)
        if instance is not None and isinstance(name, str):
            self._names.add((id(instance.cls), name))
        fact = _stored(op, name, instance)
        if fact is None or instance is None:
            return
        spot, dtype, because, detail, attrs = fact
        row = (spot, dtype, Role.OPTIMIZER_STATE, because, detail)
        if isinstance(name, str) and all(one.startswith("float8") for one in dtype):
            self._one_byte.append((id(instance.cls), name, (row, attrs)))
        else:
            op.run.facts.add(Kind.HOLDS, *row, **attrs)

    def _end(self, run: Run) -> None:
        """Of a slot in 8 bits a scale of its own (`scale_exp_avg` beside `exp_avg`) makes quantised state."""
        for cls, name, (row, attrs) in self._one_byte:
            beside = [other for of, other in self._names if of == cls and other != name and name in other]
            if not any("scale" in other for other in beside):
                run.facts.add(Kind.HOLDS, *row, **attrs)


def _stored(op: Op, name: Any, instance: Instance | None) -> tuple[Any, ...] | None:
    """A value was put into `optimizer.state[p]`, by the optimizer itself or from outside: what is to be said of it."""
    state, value = op.operand(0), op.operand(2)
    if not isinstance(value, Tensor) or not value.low or (instance is not None and handwritten.compensated(instance)):
        _slot_written(op.run, state, name, None)
        return None
    counter = isinstance(name, str) and (name in COUNTERS or "beta" in name or name == "lr")
    if value.zero_dim and not counter and "created" not in value.marks:
        _slot_written(op.run, state, name, None)  # a norm of this step: nothing is kept up in it
        return None
    spot = value.origin or value.spot or op.spot
    attrs: dict[str, Any] = {}
    if counter or value.zero_dim:
        attrs = {"what": "hyperparameter", "key": "step" if name in COUNTERS else str(name)}
    else:
        attrs = {"own": True}
    because = ("it is stored here", op.spot)
    detail = f"state['{name}']" if isinstance(name, str) else ""
    fact = (spot, value.dtype, because, detail, attrs)
    if instance is None:
        _slot_written(op.run, state, name, fact)
    return fact


def _slot_written(run: Run, state: Value, key: Any, fact: tuple[Any, ...] | None) -> None:
    """Remembers that a slot was replaced by a low tensor, or by any other; it counts when the optimizer steps again."""
    for made in run.training.optimizers:
        held = made.store.get("state")
        if isinstance(held, Dict) and held.store["each"] is state:
            kept = tuple(entry for entry in made.store.get(LOW_SLOTS, ()) if entry[0] != key)
            run.interpreter.heap.put(made.store, LOW_SLOTS, (*kept, (key, fact)) if fact else kept)


def _examine(run: Run, made: Optimizer) -> None:
    """Low trainable parameters in an optimizer: no master weights, low state, eps that vanishes."""
    store, facts = made.store, run.facts
    low = [p for p in store["params"] if is_low(p.dtype) and isinstance(p, (Tensor, Param)) and _is_trained(p)]
    if not low or store.get("elsewhere") or (float_constant(store["lr"]) == 0.0 and in_a_test(store["spot"])):
        return
    trained = [p for p in store["params"] if isinstance(p, Param) and trainable(p)]
    adapters = bool(trained) and all(is_adapter(p) for p in trained)
    spot: Spot = store["spot"]
    first = low[0]
    dtype = first.dtype or frozenset()
    made_low = first.store.get("spot") if isinstance(first, Param) else first.spot
    built = ("the optimizer is built here", spot)
    because: dict[str, Any] = {"allowed_because": "adapter-only"} if adapters else {}
    detail = f"{store['cls']} updates them in place"
    facts.add(Kind.HOLDS, made_low or spot, dtype, Role.MASTER_WEIGHT, built, detail, **because)
    if adapters and dtype == frozenset({"float16"}):
        run.training.low_adapters.append((spot, made_low))
    half_call = first.store.get("half_call") if isinstance(first, Param) else None
    if half_call is not None and dtype == frozenset({"float16"}):
        facts.add(Kind.CONFIG, half_call, dtype, None, built, precision="half-call")
    if _follows(store):
        _low_state(run, store, dtype, ("parameters became " + min(dtype) + " here", made_low), adapters)


def _low_state(run: Run, store: Store, dtype: Dtypes, because: tuple[str, Spot | None], adapters: bool) -> None:
    """State is kept in the low parameters' dtype, and eps is nothing in it."""
    extra: dict[str, Any] = {"adapter_only": True} if adapters else {}
    if store.get("framework"):
        extra["chosen"] = "framework"
    spot, detail = store["spot"], f"{store['cls']} keeps its state in the parameters' dtype"
    run.facts.add(Kind.HOLDS, spot, dtype, Role.OPTIMIZER_STATE, because, detail, **extra)
    eps = float_constant(store["eps"])
    if eps and store["adaptive"]:
        rounded = {rounds_to(eps, name) for name in dtype}
        if rounded <= {"zero", "subnormal"}:
            at = min(rounded)
            run.facts.add(Kind.EPS, spot, dtype, Role.OPTIMIZER_STATE, because, f"eps={eps:g}", rounds_to=at)


def _is_trained(param: Tensor | Param) -> bool:
    return not isinstance(param, Param) or trainable(param)


def _follows(store: Store) -> bool:
    """Whether it keeps state, in its parameters' dtype."""
    if "keeps" in store:
        return bool(store["keeps"] == "parameter")
    if not store["library"].startswith("torch.optim"):
        return False
    momentum = float_constant(store["momentum"]) not in (0.0, None)
    return momentum or store["adaptive"] or store["cls"] in ("Muon", "Adafactor")
