"""One rank of many, in one process: torch's fake process group, its collectives finished at once.

Every other rank is taken to be as this one: what is gathered is this rank's own, what is summed stays as it is, and
what another rank would send is not there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import torch

from .assumed import Assumed
from .numbers import CPU_KEY, tensors
from .patches import Patches
from .placement import Kernel
from .room import forget, has_numbers


def environment(size: int, rank: int, node: int) -> dict[str, str]:
    """What a launcher tells the rank: `environment(512, 9, 8)` is rank 1 of the second node's eight."""
    node = max(1, min(node, size))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % node),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(node),
        "GROUP_RANK": str(rank // node),
        "GROUP_WORLD_SIZE": str(-(-size // node)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "preflight",
    }


class Alone:
    """Runs an operation; one of torch.distributed comes to its end without anybody else."""

    def __init__(self, run: Kernel) -> None:
        self._run = run
        self.mode: Any = None
        """The dispatch mode, put in again around a collective's own calls."""

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What `func(*args, **kwargs)` gives."""
        if func.namespace != "c10d":
            return self._run(func, args, kwargs)
        returns = func._schema.returns
        if not returns or str(returns[-1].type).rpartition(".")[2] != "Work":
            return self._run(func, args, kwargs)
        given, written = args[0], tensors(args[0])
        if all(map(has_numbers, tensors(args))):
            if func._schema.name == "c10d::_allgather_base_":  # the fake group cuts the first dimension into ranks
                args = (args[0].view(-1), args[1].view(-1), *args[2:])
            with self.mode:
                func.redispatch(CPU_KEY, *args, **kwargs)
        else:
            for one in written:
                forget(one, None)
        work = finished(written)
        return work if len(returns) == 1 else (given, work)


def finished(value: list[torch.Tensor]) -> Any:
    """The work of a collective that is over, as an operation gives it: its future holds what was written."""
    future: Any = torch.futures.Future()
    future.set_result(value)
    made = importlib.import_module("torch._C._distributed_c10d")._create_work_from_future(future)
    return made.boxed()


def install(patches: Patches, assumed: Assumed, told: Mapping[str, int]) -> None:
    """Lets process groups of this size be made by this rank alone, whatever backend is asked for."""
    distributed = torch.distributed
    if not distributed.is_available():
        return
    fake = importlib.import_module("torch.testing._internal.distributed.fake_pg")
    c10d = distributed.distributed_c10d
    before = {name: os.environ.get(name) for name in environment(1, 0, 1)}

    def put_back() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    patches.undo.callback(put_back)
    if told.get("size", 0) > 1:
        os.environ.update(environment(told["size"], told["rank"], told["node"]))

    def first(real: Any) -> Any:
        def init_process_group(
            backend: Any = None,
            init_method: Any = None,
            timeout: Any = None,
            world_size: int = -1,
            rank: int = -1,
            store: Any = None,
            group_name: str = "",
            **kwargs: Any,
        ) -> Any:
            size = world_size if world_size > 0 else int(os.environ.get("WORLD_SIZE", "1"))
            number = rank if rank >= 0 else int(os.environ.get("RANK", "0"))
            assumed.note(f"collectives of {size} rank{'s' * (size > 1)}: every other one is as rank {number}")
            return real("fake", store=fake.FakeStore(), rank=number, world_size=size, group_name=group_name)

        return init_process_group

    def group(real: Any) -> Any:
        def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("pg_options", None), kwargs.pop("device_id", None)
            return real(ranks, timeout, "fake", *args, **kwargs)

        return new_group

    def lists(real: Any) -> Any:
        def broadcast_object_list(object_list: Any, src: Any = None, *args: Any, **kwargs: Any) -> None:
            """What another rank would send is not there: the list is left as it is."""

        return broadcast_object_list

    changes = {"init_process_group": first, "new_group": group, "broadcast_object_list": lists}
    for name, make in changes.items():
        patches.wrap(c10d, name, make)
        for owner in (distributed, importlib.import_module("torch.distributed.device_mesh")):
            if name in vars(owner):
                patches.set(owner, name, vars(c10d)[name])
