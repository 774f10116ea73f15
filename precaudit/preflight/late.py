"""What is changed in a module once that has been imported: FSDP1's bare device numbers, attention of DTensors, kernels
that nobody can run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .assumed import refuse
from .patches import Patches
from .placement import Current

Change = Callable[[Patches, Current, Any], None]


def _fsdp(patches: Patches, current: Current, module: Any) -> None:
    """`FSDP(model, device_id=0)`: torch would ask a driver which device a bare number is."""

    def init(real: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(kwargs.get("device_id"), int):
                kwargs["device_id"] = current.full(kwargs["device_id"])
            real(self, *args, **kwargs)

        return __init__

    patches.wrap(module.FullyShardedDataParallel, "__init__", init)


def _triton(patches: Patches, current: Current, module: Any) -> None:
    """A launch is an error that names the kernel."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self, "__name__", None) or getattr(getattr(self, "fn", None), "__name__", "?")
        way_out = 'switch it off for this run, as with attn_implementation="sdpa", or trace on a GPU'
        raise refuse(f"the Triton kernel {name} was launched, and there is no GPU to run it", way_out)

    patches.set(module.JITFunction, "run", run)


def _attention(patches: Patches, current: Current, module: Any) -> None:
    """Attention of DTensors: torch knows how CUDA's fused kernels are sharded, and nothing of the CPU's.

    By batch or by heads, as CUDA's are (torch/distributed/tensor/_ops/_matrix_ops.py).
    """
    from torch.distributed.tensor.experimental import register_sharding  # its own module is not whole before this one

    replicate, by_batch, by_heads = module.Replicate(), module.Shard(0), module.Shard(1)

    def ways(results: int, given: int, *args: Any, attn_mask: Any = None, **kwargs: Any) -> list[Any]:
        """Placements of the results and of what is given, numbers left out; a mask is as wide as it is broadcast."""
        found = []
        for dim, placed in ((None, replicate), (0, by_batch), (1, by_heads)):
            whole = attn_mask is not None and (dim is None or attn_mask.ndim < 4 or attn_mask.shape[dim] == 1)
            mask = [] if attn_mask is None else [replicate if whole else placed]
            found.append(([placed] * results, [placed] * given + [None] * (len(args) - given) + mask))
        return found

    for name, results, given in (("", 2, 3), ("_backward", 3, 6)):
        op = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}").default
        known = module.DTensor._op_dispatcher.sharding_propagator
        if op in known.op_strategy_funcs:
            continue  # this torch knows it
        register_sharding(op)(partial(ways, results, given))
        patches.undo.callback(known.op_strategy_funcs.pop, op, None)
        patches.undo.callback(known.op_to_schema_info.pop, op, None)


CHANGES: dict[str, Change] = {
    "torch.distributed.fsdp.fully_sharded_data_parallel": _fsdp,
    "torch.distributed.tensor": _attention,
    "triton.runtime.jit": _triton,
}
"""Module -> what is changed in it."""
