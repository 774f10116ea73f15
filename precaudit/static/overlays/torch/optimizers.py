"""Optimizers of torch.optim: what they hold, when they step, and in which dtype they keep it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Autocast,
    Choice,
    Const,
    Dict,
    Number,
    Opaque,
    Optimizer,
    Param,
    Seq,
    Tensor,
    Value,
    seq,
    unknown,
)
from precaudit.static.overlays.events import tell

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
        "lr": kwargs.get("lr", args[1] if len(args) > 1 else None),
        "adaptive": short in ADAPTIVE,
        "loops": run.loops(),
    }
    made = Optimizer(store)
    run.training.optimizers.append(made)
    tell(run, "optimizer", args, node, made, kwargs)
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


def step(run: Run, made: Value, node: Any) -> None:
    """`optimizer.step()`, called by the user and not by a scaler."""
    tell(run, "optimizer.step", [made], node)
    stepped(run, made, node)


def stepped(run: Run, made: Value, node: Any) -> None:
    """The optimizer's update ran, whoever called it."""
    run.training.updated = True
    tell(run, "optimizer.stepped", [made], node)


def is_adapter(param: Param) -> bool:
    """Whether a parameter is an adapter's: PEFT put it there, or its name says so."""
    return "\0adapters" in param.store or ADAPTER.search(param.name) is not None


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
