"""FSDP: what its mixed precision makes of gradients and buffers, and which loss scaler sees all shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import (
    Instance,
    Ref,
    Value,
    is_low,
    options,
    unknown,
)
from precaudit.static.overlays.torch import modules, operands, reduction, training

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

FIELDS = {
    "MixedPrecision": ("param_dtype", "reduce_dtype", "buffer_dtype"),
    "MixedPrecisionPolicy": ("param_dtype", "reduce_dtype", "output_dtype"),
}
"""Positional order of the dtypes. Source: https://pytorch.org/docs/stable/fsdp.html and distributed.fsdp.fully_shard"""


def mixed_precision(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`MixedPrecision(...)` of FSDP1 and `MixedPrecisionPolicy(...)` of FSDP2."""
    short = name.rpartition(".")[2]
    if "\0rest" in kwargs:
        return unknown()
    given = {**dict(zip(FIELDS[short], args, strict=False)), **kwargs}
    dtypes = {field: operands.names(operands.dtype_argument(run, given.get(field))) for field in FIELDS[short]}
    made = Instance(Ref(name), {"\0dtypes": dtypes, "\0spot": run.spot(node)})
    run.training.policies.append((made, args, kwargs))
    return made


def shard(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`FullyShardedDataParallel(model, ...)` and `fully_shard(model, ...)`, which give the model back."""
    run.met("fsdp1" if name.endswith("FullyShardedDataParallel") else "fsdp2")
    model = args[0] if args else kwargs.get("module", unknown())
    policy = kwargs.get("mixed_precision", kwargs.get("mp_policy"))
    if policy is not None:
        run.training.policies_used.update(
            id(option.store) if isinstance(option, Instance) else None for option in options(policy)
        )
    strategy = kwargs.get("sharding_strategy")
    whole = any(isinstance(s, Ref) and s.name.endswith("NO_SHARD") for s in options(strategy)) if strategy else False
    if not isinstance(policy, Instance) or "\0dtypes" not in policy.store:
        return model
    dtypes = policy.store["\0dtypes"]
    first = name.endswith("FullyShardedDataParallel")
    if dtypes["param_dtype"] == frozenset({"float16"}) and not whole:
        run.training.sharded_float16.append((run.spot(node) if first else policy.store["\0spot"], first))
    if first and is_low(dtypes["buffer_dtype"]) and "auto_wrap_policy" not in kwargs and _has_statistics(run, model):
        # With a wrap policy FSDP1 wraps every BatchNorm by itself, without mixed precision.
        run.facts.add(
            Kind.HOLDS,
            policy.store["\0spot"],
            dtypes["buffer_dtype"],
            Role.NORM_RUNNING_STATISTICS,
            ("the model is wrapped here", run.spot(node)),
            by="buffer_dtype",
        )
    return model


def policies(run: Run) -> None:
    """Reports how gradients are reduced by the policies that models are sharded with, or by all if unknown."""
    used = run.training.policies_used
    for policy, args, kwargs in run.training.policies:
        tried = training.in_a_test(policy.store["\0spot"]) and not run.training.in_earnest
        if id(policy.store) in used or ((not used or None in used) and not tried):
            reduction.mixed_precision(run, args, kwargs, policy.store["\0spot"])


def _has_statistics(run: Run, model: Value) -> bool:
    """Whether running statistics are certainly among the buffers, in a model that is not in eval mode."""
    return any(
        isinstance(item, Instance) and "running_var" in item.store and item.store.get("\0training", True) is True
        for _, item in modules.walk(run, model)
    )


def unscaled(run: Run) -> None:
    """Sharded float16 that is trained with no loss scaling, or by a scaler that sees one rank's shards only."""
    held = run.training
    if not held.trained or run.outside_scaling:
        return
    plain = [s for s in held.scalers if not s.store["sharded"] and s.enabled and id(s.store) in held.stepped_scalers]
    for spot, first in held.sharded_float16:
        if first and plain and plain[0].spot is not None:
            _report(run, plain[0].spot, ("the model is sharded here", spot))
        elif not held.saw_scaler and held.plain_backward is not None:
            _report(run, spot, ("backward starts here, with no loss scaling", held.plain_backward))


def _report(run: Run, spot: Any, because: tuple[str, Any]) -> None:
    run.facts.add(Kind.LOSS_SCALING, spot, "float16", Role.LOSS_SCALE, because, sharded_without_scaler=True)
