"""What is changed in a module once that has been imported: FSDP1's bare device numbers, kernels that nobody can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


CHANGES: dict[str, Change] = {
    "torch.distributed.fsdp.fully_sharded_data_parallel": _fsdp,
    "triton.runtime.jit": _triton,
}
"""Module -> what is changed in it."""
