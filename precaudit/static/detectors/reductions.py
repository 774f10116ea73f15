"""PA501, PA502 and PA503: gradients summed between ranks, sharded float16, running statistics as low buffers."""

from __future__ import annotations

from functools import partial

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Instance, Ref, Spot, Tensor, Value, is_low, options
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import modules, sharding
from precaudit.static.overlays.torch.training import in_a_test

COMPRESSED = {"fp16_compress": "float16", "bf16_compress": "bfloat16"}
"""What the names of torch's compressing hooks, and of its wrappers around other hooks, begin with."""
SUMS = """
all_reduce all_reduce_coalesced reduce reduce_scatter reduce_scatter_tensor _reduce_scatter_base reduce_multigpu
all_reduce_multigpu reduce_scatter_multigpu
"""
"""Collectives of torch.distributed that add up what the ranks hold."""


def listen(bus: Bus) -> None:
    Reductions(bus)


class Reductions:
    """The policies by which models are sharded; which of them are used is known at the end."""

    def __init__(self, bus: Bus) -> None:
        self._policies: list[tuple[Instance, sharding.Policy]] = []
        self._used: set[int | None] = set()
        """Those that models are sharded with; None where that is not known."""
        self._float16: list[tuple[Spot, bool]] = []
        """Where float16 is sharded, and whether by FSDP1."""
        on = partial(bus.on, low_only=False)
        on("MixedPrecision", self._made)
        on("shard", self._sharded)
        on("DistributedDataParallel", self._wrapped)
        on("comm_hook", _compressed)
        on(SUMS, _summed)
        bus.on_end(self._end)

    def _made(self, op: Op) -> None:
        policy = sharding.policy_of(op.result)
        if policy is not None and isinstance(op.result, Instance):
            self._policies.append((op.result, policy))

    def _wrapped(self, op: Op) -> None:
        """DDP's buckets may have a policy like FSDP's."""
        policy = op.kwargs.get("mixed_precision")
        if isinstance(policy, Instance):
            self._used.add(id(policy.store))

    def _sharded(self, op: Op) -> None:
        """`FullyShardedDataParallel(model, ...)`, `fully_shard(model, ...)`."""
        given = op.kwargs.get("mixed_precision", op.kwargs.get("mp_policy"))
        if given is not None:
            self._used.update(id(o.store) if isinstance(o, Instance) else None for o in options(given))
        policy = sharding.policy_of(given)
        if policy is None:
            return
        strategy = op.kwargs.get("sharding_strategy")
        whole = strategy is not None and any(
            isinstance(s, Ref) and s.name.endswith("NO_SHARD") for s in options(strategy)
        )
        called = op.operand(0)
        first = isinstance(called, Ref) and called.name.endswith("FullyShardedDataParallel")
        if policy.param_dtype == frozenset({"float16"}) and not whole:
            self._float16.append((op.spot if first else policy.spot, first))
        # With a wrap policy FSDP1 wraps every BatchNorm by itself, without mixed precision.
        buffers = first and is_low(policy.buffer_dtype) and "auto_wrap_policy" not in op.kwargs
        if buffers and _has_statistics(op.run, op.operand(1)):
            because = ("the model is wrapped here", op.spot)
            role = Role.NORM_RUNNING_STATISTICS
            op.run.facts.add(Kind.HOLDS, policy.buffers, policy.buffer_dtype, role, because, by="buffer_dtype")

    def _end(self, run: Run) -> None:
        for made, policy in self._policies:
            tried = in_a_test(policy.spot) and not run.training.in_earnest
            if id(made.store) in self._used or ((not self._used or None in self._used) and not tried):
                _by_policy(run, policy)
        self._unscaled(run)

    def _unscaled(self, run: Run) -> None:
        """Sharded float16 that is trained with no loss scaling, or by a scaler that sees one rank's shards only."""
        held = run.training
        if not held.trained or run.training.outside_scaling:
            return
        stepped = held.stepped_scalers
        plain = [s for s in held.scalers if not s.store["sharded"] and s.enabled and id(s.store) in stepped]
        for spot, first in self._float16:
            if first and plain and plain[0].spot is not None:
                _report(run, plain[0].spot, ("the model is sharded here", spot))
            elif not held.saw_scaler and held.plain_backward is not None:
                _report(run, spot, ("backward starts here, with no loss scaling", held.plain_backward))


def _report(run: Run, spot: Spot, because: tuple[str, Spot]) -> None:
    run.facts.add(Kind.LOSS_SCALING, spot, "float16", Role.LOSS_SCALE, because, sharded_without_scaler=True)


def _by_policy(run: Run, policy: sharding.Policy) -> None:
    """An unset reduce_dtype is param_dtype."""
    dtype = policy.reduce_dtype if policy.reduce_given else policy.param_dtype
    if is_low(dtype):
        detail = "" if policy.reduce_given else "reduce_dtype is not set, so param_dtype is used"
        chosen = "explicit" if policy.reduce_given else "default"
        run.facts.add(Kind.HOLDS, policy.spot, dtype, Role.GRADIENT_REDUCTION, None, detail, chosen=chosen)


def _compressed(op: Op) -> None:
    """`model.register_comm_hook(state, fp16_compress_hook)`."""
    for value in op.operands:
        name = value.name.rsplit(".", 1)[-1] if isinstance(value, Ref) else ""
        dtype = next((dtype for front, dtype in COMPRESSED.items() if name.startswith(front)), None)
        if dtype:
            role = Role.GRADIENT_REDUCTION
            op.run.facts.add(Kind.HOLDS, op.spot, dtype, role, None, name, chosen="explicit", by="hook")


def _summed(op: Op) -> None:
    """A collective of torch.distributed sums low gradients."""
    for value in (*op.operands[:2], *op.kwargs.values()):
        if isinstance(value, Tensor) and value.low and "gradient" in value.marks:
            role = Role.GRADIENT_REDUCTION
            op.run.facts.add(Kind.HOLDS, op.spot, value.dtype, role, None, op.name, chosen="explicit")
            return


def _has_statistics(run: Run, model: Value) -> bool:
    """Whether running statistics are certainly among the buffers, in a model that is not in eval mode."""
    return any(
        isinstance(item, Instance) and "running_var" in item.store and modules.in_training(item) is True
        for _, item in modules.walk(run, model)
    )
