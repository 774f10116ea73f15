"""Optimizers and averages written in the code under check: their state, and parameters written in place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language import calls, classes
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    ANY,
    Class,
    Dict,
    Dtypes,
    Instance,
    Param,
    Spot,
    Tensor,
    Value,
    is_low,
    seq,
    unknown,
)
from precaudit.static.overlays.torch import operands, optimizers
from precaudit.static.reach.words import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

COMPENSATED = re.compile(r"kahan|compensat|stochastic|_sr_|seeded_round", re.IGNORECASE)
CARRIES = re.compile(r"\b(\w+) *= *(\w+)(?:\.data|\.detach\(\))?\.clone\(\).*\b\1(?:\.sub_?\( *| *- *)\2\b", re.DOTALL)
"""A copy made before an update, less what is there after it: what rounding took."""


def is_optimizer_class(cls: Value) -> bool:
    bases = classes.library_bases(cls)
    return any(b.startswith("torch.optim") and b.rsplit(".", 1)[-1][:1].isupper() for b in bases)


def init_optimizer(run: Run, instance: Instance, args: list[Value], kwargs: dict[str, Value]) -> None:
    """`super().__init__(params, defaults)` of a class derived from torch.optim.Optimizer."""
    given = args[0] if args else kwargs.get("params", unknown())
    defaults = args[1] if len(args) > 1 else kwargs.get("defaults", unknown())
    group: Store = dict(defaults.store) if isinstance(defaults, Dict) else {ANY: unknown()}
    group["params"] = seq(optimizers.collect(run, given), open=True)
    put = run.interpreter.heap.put
    put(instance.store, "param_groups", seq([Dict(group)], open=True))
    put(instance.store, "state", Dict({}, "optimizer_state"))
    put(instance.store, "defaults", defaults)
    run.training.custom.append(instance)


def current_optimizer(run: Run) -> Instance | None:
    """The hand-written optimizer whose method is being run."""
    for frame in reversed(run.interpreter.frames):
        if isinstance(frame.receiver, Instance) and is_optimizer_class(frame.receiver.cls):
            return frame.receiver
    return None


def compensated(instance: Instance) -> bool:
    """Whether the class compensates on purpose: Kahan summation or stochastic rounding."""
    cls = instance.cls
    return isinstance(cls, Class) and bool(COMPENSATED.search(code_of(cls.scope.source.code(cls.node))))


def compensating(run: Run) -> bool:
    """Whether the class or function that runs compensates, by words or deeds; one that trains is too long to tell."""
    for frame in reversed(run.interpreter.frames):
        if frame.function is not None:
            owner = frame.owner if isinstance(frame.owner, Class) else None
            source = owner.scope.source if owner is not None else run.interpreter.scope.source
            text = code_of(source.code(owner.node if owner is not None else frame.function))
            found = COMPENSATED.search(text) or CARRIES.search(text)
            return found is not None and "backward(" not in text
    return False


def state_stored(run: Run, state: Dict, key: Any, value: Value, node: Any) -> None:
    """A value was put into `optimizer.state[p]`, by the optimizer itself or from outside."""
    instance = current_optimizer(run)
    value = operands.as_tensor(run, value)
    if not isinstance(value, Tensor) or not value.low or (instance is not None and compensated(instance)):
        optimizers.state_written(run, state, key, None)
        return
    counter = isinstance(key, str) and (key in ("step", "t", "steps", "iter", "count") or "beta" in key or key == "lr")
    if value.zero_dim and not counter and "created" not in value.marks:
        optimizers.state_written(run, state, key, None)  # a norm of this step: nothing is kept up in it
        return
    spot = value.origin or value.spot or run.spot(node)
    attrs: dict[str, Any] = {}
    if counter or value.zero_dim:
        attrs = {"what": "hyperparameter", "key": "step" if key in ("t", "steps", "iter", "count") else str(key)}
    because = ("it is stored here", run.spot(node))
    detail = f"state['{key}']" if isinstance(key, str) else ""
    if instance is not None:
        run.facts.add(Kind.HOLDS, spot, value.dtype, Role.OPTIMIZER_STATE, because, detail, **attrs)
    else:
        optimizers.state_written(run, state, key, (spot, value.dtype, because, detail, attrs))


def parameter_written(run: Run, param: Param, name: str, args: list[Value], node: Any) -> None:
    """A parameter was changed in place by a tensor method or an augmented assignment."""
    dtype = param.dtype
    instance = current_optimizer(run)
    region = run.autocast()
    cached = region is not None and id(region) in run.training.regions_used and region.spot is not None
    written = dtype == frozenset({"float32"}) and optimizers.trainable(param) and name != "zero"
    if region is not None and cached and instance is None and written:
        run.facts.add(
            Kind.AUTOCAST,
            run.spot(node),
            region.dtype,
            None,
            ("the region that caches its copy begins here", region.spot),
            enabled=True,
            stale_cache=True,
        )
    if not is_low(dtype):
        return
    source = operands.marks_of([operands.as_tensor(run, a) for a in args])
    if instance is not None:
        if name in ("copy", "zero", "fill") or not optimizers.trainable(param) or compensated(instance):
            return
        run.facts.add(
            Kind.HOLDS,
            run.spot(node),
            dtype,
            Role.MASTER_WEIGHT,
            ("parameters were cast here", param.store.get("spot")),
            "the optimizer's step writes them in place",
        )
        return
    if "gradient" in source and name in ("add", "sub", "addcdiv") and optimizers.trainable(param) and not run.grad():
        trained_by_hand(run, dtype, param.store.get("spot"), node)
        return
    averaged = name in ("add", "lerp", "sub") or (
        name == "copy" and any(isinstance(a, Tensor) and a.op in ("Add", "Subtract", "lerp") for a in args)
    )
    if averaged and "weights" in source and "gradient" not in source:
        average(run, dtype, param.store.get("spot") or run.spot(node), node)


def trained_by_hand(run: Run, dtype: Dtypes | None, made: Spot | None, node: Any) -> None:
    """Gradients are applied to low weights in place, outside any optimizer."""
    because = ("parameters were cast here", made)
    detail = "gradients are applied to them in place"
    run.facts.add(Kind.HOLDS, run.spot(node), dtype, Role.MASTER_WEIGHT, because, detail)


def average(run: Run, dtype: Dtypes | None, spot: Spot, node: Any) -> None:
    run.facts.add(
        Kind.HOLDS,
        spot,
        dtype,
        Role.ACCUMULATOR,
        ("the average is updated here", run.spot(node)),
        "its updates are far below half a unit in the last place",
        what="ema",
    )


def step(run: Run, instance: Instance, node: Any) -> None:
    """Runs the step method of a hand-written optimizer that a GradScaler steps."""
    method = classes.find_method(instance.cls, "step")
    if method is not None:
        calls.call(run.interpreter, classes.bind(method[0], instance, method[1]), [], {}, node)
