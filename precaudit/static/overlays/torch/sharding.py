"""FSDP: its mixed-precision policies, and the models that it shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.static.language.values import Dtypes, Instance, Ref, Spot, Value, unknown
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

FIELDS = {
    "MixedPrecision": ("param_dtype", "reduce_dtype", "buffer_dtype"),
    "MixedPrecisionPolicy": ("param_dtype", "reduce_dtype", "output_dtype"),
}
"""Positional order of the dtypes. Source: https://pytorch.org/docs/stable/fsdp.html and distributed.fsdp.fully_shard"""


class Policy(NamedTuple):
    """What a policy says, as far as it is known; a dtype that it leaves out, or that is not known, is None."""

    spot: Spot
    param_dtype: Dtypes | None
    reduce_dtype: Dtypes | None
    buffer_dtype: Dtypes | None
    reduce_given: bool
    buffers: Spot
    """Where it speaks of buffers."""


def policy_of(value: Value | None) -> Policy | None:
    """What `MixedPrecision(...)` made."""
    found: Policy | None = value.store.get("\0policy") if isinstance(value, Instance) else None
    return found


def mixed_precision(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`MixedPrecision(...)` of FSDP1 and `MixedPrecisionPolicy(...)` of FSDP2."""
    if "\0rest" in kwargs:
        return unknown()
    given = {**dict(zip(FIELDS[name.rpartition(".")[2]], args, strict=False)), **kwargs}
    asked = [operands.dtype_argument(run, given.get(field)) for field in FIELDS["MixedPrecision"]]
    dtypes = [operands.names(dtype) for dtype in asked]
    policy = Policy(
        run.spot(node), dtypes[0], dtypes[1], dtypes[2], asked[1] is not None, run.argument_spot(node, "buffer_dtype")
    )
    made = Instance(Ref(name), {"\0policy": policy})
    tell(run, "MixedPrecision", args, node, made, kwargs)
    return made


def shard(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`FullyShardedDataParallel(model, ...)` and `fully_shard(model, ...)`, which give the model back."""
    run.met("fsdp1" if name.endswith("FullyShardedDataParallel") else "fsdp2")
    model = args[0] if args else kwargs.get("module", unknown())
    tell(run, "shard", [Ref(name), model], node, model, kwargs)
    return model
