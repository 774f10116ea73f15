"""Optimizers of torch.optim: what they hold, when they step, and in which dtype they keep it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role, rounds_to
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Autocast,
    Choice,
    Const,
    Dict,
    Dtypes,
    Number,
    Opaque,
    Optimizer,
    Param,
    Seq,
    Spot,
    Tensor,
    Value,
    float_constant,
    is_low,
    seq,
    unknown,
)
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import paths

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

ADAPTIVE = frozenset(
    {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "SparseAdam", "Rprop", "ASGD"}
)
"""Optimizers that divide by a second moment plus eps."""

ADAPTER = re.compile(r"lora|adapter|\bia3\b|prompt", re.IGNORECASE)


def optimizer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torch.optim.<name>(params, ...)` and its kin."""
    given = args[0] if args else kwargs.get("params", unknown())
    short = name.rsplit(".", 1)[-1]
    eps = kwargs.get("eps", Const(1e-8) if short in ADAPTIVE and "eps" not in kwargs else None)
    if short == "Adagrad" and "eps" not in kwargs:
        eps = Const(1e-10)
    store: Store = {
        "params": tuple(collect(run, given)),
        "cls": short,
        "library": name,
        "spot": run.spot(node),
        "eps": eps,
        "momentum": kwargs.get("momentum", args[2] if short == "SGD" and len(args) > 2 else Const(0)),
        "adaptive": short in ADAPTIVE,
        "loops": run.loops(),
    }
    made = Optimizer(store)
    run.training.optimizers.append(made)
    run.bus.tell(Op(run, "optimizer", args, kwargs, [*args, *kwargs.values()], made, node))
    return made


def collect(run: Run, value: Value, depth: int = 0) -> list[Value]:
    """The parameters in a list, a group dict, named pairs or a generator of them."""
    if depth > 4:
        return []
    if isinstance(value, (Param, Tensor)):
        return [value]
    if isinstance(value, Opaque):
        return [value]
    if isinstance(value, Dict):
        inner = value.store.get("params") or value.store.get(ANY)
        return collect(run, inner, depth + 1) if inner is not None else []
    if isinstance(value, Seq):
        return [p for item in value.items for p in collect(run, item, depth + 1)]
    if isinstance(value, Choice):
        found = [collect(run, option, depth + 1) for option in value.options]
        return [p for group in found for p in group]
    return []


def perhaps(items: list[Value]) -> list[Value]:
    """Parameters of which a condition lets some through: each may have the dtype of any of them."""
    stores = tuple(item.store for item in items if isinstance(item, Param))
    if len(stores) < 2:
        return items
    return [replace(item, among=stores) if isinstance(item, Param) else item for item in items]


def state_dict(made: Value) -> Dict:
    """What `optimizer.state_dict()` holds: a tensor in each slot, float32 where all parameters are."""
    groups = seq([Dict({ANY: Number()})], open=True)
    return Dict({"state": Dict({ANY: Dict({ANY: _slot(made)})}), "param_groups": groups}, "state_dict")


def state(made: Optimizer) -> Dict:
    """`optimizer.state`: one dict of slots that stands for all parameters."""
    if "state" not in made.store:
        made.store["state"] = Dict({"each": Dict({ANY: _slot(made)}, "param_state")}, "optimizer_state")
    found: Dict = made.store["state"]
    return found


def _slot(made: Value) -> Tensor:
    params = made.store["params"] if isinstance(made, Optimizer) else (unknown(),)
    wide = all(isinstance(p, (Param, Tensor)) and p.dtype == frozenset({"float32"}) for p in params)
    return Tensor(frozenset({"float32"}) if wide else None, marks=frozenset({"optimizer_state"}))


def state_written(run: Run, state: Dict, key: Any, fact: tuple[Any, ...] | None) -> None:
    """Remembers that a slot was replaced by a low tensor, or by any other; it counts when the optimizer steps again."""
    for made in run.training.optimizers:
        held = made.store.get("state")
        if isinstance(held, Dict) and held.store["each"] is state:
            kept = tuple(entry for entry in made.store.get("low_slots", ()) if entry[0] != key)
            run.interpreter.heap.put(made.store, "low_slots", (*kept, (key, fact)) if fact else kept)


def cast_after_optimizer(run: Run, stores: list[Store], dtype: Dtypes | None, spot: Spot) -> None:
    """Remembers a cast of parameters that an optimizer already holds; it counts when that optimizer steps again."""
    identities = {id(store) for store in stores}
    for made in run.training.optimizers:
        held = [p for p in made.store["params"] if isinstance(p, Param) and id(p.store) in identities]
        if any(p.trainable is True for p in held):
            run.interpreter.heap.put(made.store, "cast_after", (spot, dtype))


def step(run: Run, made: Value, node: Any) -> None:
    """`optimizer.step()`, called by the user and not by a scaler."""
    under_autocast(run, node)
    states = run.interpreter.paths
    pending = [s for s in states if paths.pending(run, s)]
    untouched = all(not paths.has(s, "unscaled") and not paths.has(s, "manual") for s in states)
    if pending and untouched and len(pending) == len(states):
        run.facts.add(Kind.OPTIMIZER_STEP, run.spot(node), gradients="scaled", autocast=False)
    again = ("scaler-stepped", id(made.store)) if isinstance(made, Optimizer) else None
    if states and again is not None and all(again in s for s in states):
        run.facts.add(Kind.SCALER_CALL, run.spot(node), misuse="step-beside-scaler", raises=False)
    stepped(run, made, node)


def under_autocast(run: Run, node: Any) -> None:
    region = run.autocast()
    if region is not None and region.spot is not None and region.enabled is not False:
        run.facts.add(
            Kind.OPTIMIZER_STEP,
            run.spot(node),
            "",
            None,
            ("the region begins here", region.spot),
            gradients="unscaled",
            autocast=True,
        )


def stepped(run: Run, made: Value, node: Any) -> None:
    """The optimizer's update ran: its parameters' dtypes at this moment are what it updates."""
    run.training.updated = True
    if isinstance(made, Optimizer):
        examine(run, made)
        cast = made.store.get("cast_after")
        if cast is not None:
            spot, dtype = cast
            if is_low(dtype):
                run.facts.add(
                    Kind.CAST,
                    spot,
                    dtype,
                    None,
                    ("the optimizer was built here", made.store["spot"]),
                    after_optimizer=True,
                )
        for _, (spot, dtype, because, detail, attrs) in made.store.get("low_slots", ()):
            run.facts.add(Kind.HOLDS, spot, dtype, Role.OPTIMIZER_STATE, because, detail, **attrs)
        made.store["examined"] = True


def examine(run: Run, made: Optimizer) -> None:
    """Low trainable parameters in an optimizer: no master weights, low state, eps that vanishes."""
    store = made.store
    facts = run.facts
    low: list[Any] = []
    for param in store["params"]:
        dtype = param.dtype
        if not is_low(dtype):
            continue
        if isinstance(param, Param) and not trainable(param):
            continue
        if isinstance(param, (Tensor, Param)):
            low.append(param)
    if not low or store.get("elsewhere"):
        return
    trained = [p for p in store["params"] if isinstance(p, Param) and trainable(p)]
    adapters = bool(trained) and all(is_adapter(p) for p in trained)
    spot: Spot = store["spot"]
    first = low[0]
    dtype = first.dtype
    made_low = first.store.get("spot") if isinstance(first, Param) else first.spot
    cause = ("parameters became " + min(dtype) + " here", made_low)
    attrs: dict[str, Any] = {"allowed_because": "adapter-only"} if adapters else {}
    facts.add(
        Kind.HOLDS,
        made_low or spot,
        dtype,
        Role.MASTER_WEIGHT,
        ("the optimizer is built here", spot),
        f"{store['cls']} updates them in place",
        **attrs,
    )
    if adapters and dtype == frozenset({"float16"}):
        run.training.low_adapters.append((spot, made_low))
    half_call = first.store.get("half_call") if isinstance(first, Param) else None
    if half_call is not None and dtype == frozenset({"float16"}):
        facts.add(Kind.CONFIG, half_call, dtype, None, ("the optimizer is built here", spot), precision="half-call")
    if not _follows(store):
        return
    extra: dict[str, Any] = {"adapter_only": True} if adapters else {}
    if store.get("framework"):
        extra["chosen"] = "framework"
    facts.add(
        Kind.HOLDS,
        spot,
        dtype,
        Role.OPTIMIZER_STATE,
        cause,
        f"{store['cls']} keeps its state in the parameters' dtype",
        **extra,
    )
    eps = float_constant(store["eps"])
    if eps and dtype and store["adaptive"]:
        rounded = {rounds_to(eps, name) for name in dtype}
        if rounded <= {"zero", "subnormal"}:
            facts.add(Kind.EPS, spot, dtype, Role.OPTIMIZER_STATE, cause, f"eps={eps:g}", rounds_to=min(rounded))


def is_adapter(param: Param) -> bool:
    """Whether a parameter is an adapter's: PEFT put it there, or its name says so."""
    return "\0adapters" in param.store or ADAPTER.search(param.name) is not None


def _follows(store: Store) -> bool:
    """Whether it keeps state, in its parameters' dtype."""
    if "keeps" in store:
        return bool(store["keeps"] == "parameter")
    if not store["library"].startswith("torch.optim"):
        return False
    momentum = float_constant(store["momentum"]) not in (0.0, None)
    return momentum or store["adaptive"] or store["cls"] in ("Muon", "Adafactor")


def trains(run: Run, model: Opaque) -> bool:
    """Whether a model of unknown insides is float16 and in the hands of an optimizer."""
    if model.store.get("dtype") != frozenset({"float16"}):
        return False
    held = [p for made in run.training.optimizers for p in made.store["params"] if isinstance(p, Param)]
    return any(p.store is model.store and trainable(p) for p in held)


def trainable(param: Param) -> bool:
    if "requires_grad" not in param.store:
        return True
    return param.trainable is True


def used_in_region(run: Run, region: Autocast | None) -> None:
    """Autocast cached its copy of a weight in this region."""
    if region is not None and region.enabled and region.caches:
        run.training.regions_used[id(region)] = region
