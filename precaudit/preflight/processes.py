"""torch.distributed where "nccl" is asked for: gloo does the same between processes of CPUs."""

from __future__ import annotations

import sys
from typing import Any

import torch

from .assumed import Assumed
from .patches import Patches


def install(patches: Patches, assumed: Assumed) -> None:
    """Lets process groups of nccl be made."""
    distributed = torch.distributed
    if not distributed.is_available():
        return
    c10d = distributed.distributed_c10d

    def gloo(backend: Any) -> Any:
        if isinstance(backend, str) and "nccl" in backend.lower():
            assumed.note("nccl: its collectives ran on gloo")
            return "gloo"
        return "gloo" if backend is None else backend

    def first(real: Any) -> Any:
        def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("device_id", None)  # which binds nccl's communicator to one device
            kwargs.pop("pg_options", None)
            return real(gloo(backend), *args, **kwargs)

        return init_process_group

    def group(real: Any) -> Any:
        def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("pg_options", None), kwargs.pop("device_id", None)
            return real(ranks, timeout, None if backend is None else gloo(backend), *args, **kwargs)

        return new_group

    for name, make in (("init_process_group", first), ("new_group", group)):
        patches.wrap(c10d, name, make)
        for owner in (distributed, sys.modules.get("torch.distributed.device_mesh")):
            if owner is not None and name in vars(owner):
                patches.set(owner, name, vars(c10d)[name])
    for owner in (distributed, c10d):
        patches.set(owner, "is_nccl_available", lambda: True)
    _parallel(patches)
    patches.wrap(torch.nn.parallel.DistributedDataParallel, "_check_comm_hook", _as_a_build_for_cuda)


def _as_a_build_for_cuda(real: Any) -> Any:
    """A hook in bfloat16 is refused where torch was not built for CUDA."""

    def check(model: Any, hook: Any) -> None:
        before, torch.version.cuda = torch.version.cuda, torch.version.cuda or "12.8"
        try:
            real(model, hook)
        finally:
            torch.version.cuda = before

    return check


def _parallel(patches: Patches) -> None:
    """DataParallel over the one device has nothing to scatter."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to("cuda")
        if isinstance(value, (list, tuple)):
            return type(value)(move(one) for one in value)
        return {key: move(one) for key, one in value.items()} if isinstance(value, dict) else value

    def scatter(self: Any, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        return (move(tuple(inputs)),), (move(kwargs or {}),)

    patches.set(torch.nn.DataParallel, "scatter", scatter)
