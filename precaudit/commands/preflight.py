"""`precaudit preflight`: traces a training that wants a GPU where there is none, with the dtypes of CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from precaudit.commands.trace import ConfiguredCommand, trace
from precaudit.errors import UsageError

DEVICES = ("h100", "a100", "v100", "mi300", "b200")
"""The names of `preflight/devices.py`."""
OWN = click.Option(
    ["--device"],
    type=click.Choice(DEVICES),
    default=DEVICES[0],
    show_default=True,
    help="What torch.cuda answers as.",
)
FAKE = click.Option(
    ["--fake"], is_flag=True, help="Full size without memory: tensors have sizes and dtypes, no numbers."
)
WORLD = click.Option(
    ["--world-size"],
    type=click.IntRange(1),
    metavar="N",
    help="Run one rank of N, alone.  [default: as the launcher says]",
)
RANK = click.Option(
    ["--rank"], type=click.IntRange(0), default=0, show_default=True, metavar="R", help="Which of them."
)
DATA = click.Option(["--data"], hidden=True)
"""Named so that asking for it is answered in one line."""
LEFT_OUT: dict[str, Any] = {"eager": True, "no_inject": False, "verify_undisturbed": False}
"""Options of trace that have no meaning here, and what they are: everything runs eagerly."""


def _one_of_many(
    fake: bool, world_size: int | None, rank: int, command: Sequence[str]
) -> tuple[dict[str, int], Sequence[str]]:
    """The world that this process is one rank of, and the command of that rank; empty where ranks are processes."""
    from precaudit.launch import launcher

    asked = launcher.read(command)
    size = world_size or asked.size
    if not world_size and not (fake and size > 1) and asked.nodes == 1:
        if rank:
            raise UsageError("--rank: of how many? say --world-size as well")
        return {}, command
    if rank >= size:
        raise UsageError(f"--rank {rank}: of {size} ranks the last is {size - 1}")
    return {"size": size, "rank": rank, "node": asked.per_node if asked.size > 1 else min(8, size)}, asked.command


def run(device: str, fake: bool, world_size: int | None, rank: int, data: str | None, **options: Any) -> int:
    """Run COMMAND as if a CUDA device were there, on CPU tensors, and report its precision.

    \b
    precaudit preflight train.py --lr 1e-4
    precaudit preflight torchrun --nproc-per-node 2 train.py
    precaudit preflight --fake torchrun --nnodes 64 --nproc-per-node 8 train.py
    """
    if data:
        raise UsageError(
            f"--data {data}: not built: the program reads its own data; give it a small file of the same form"
        )
    if fake and options["exact"]:
        raise UsageError("--exact: measures numbers, and with --fake there are none; leave one of them out")
    world, command = _one_of_many(fake, world_size, rank, options.pop("command"))
    values = {"values": "off"} if fake else {}
    settings = {"device": device, "fake": fake, "world": world}
    traced: Any = trace.callback
    with _told(world):
        return int(traced(**{**options, **LEFT_OUT, **values}, command=tuple(command), preflight=settings))


@contextmanager
def _told(world: dict[str, int]) -> Iterator[None]:
    """The variables of a launcher that is not started; programs ask for them before they import torch."""
    before = dict(os.environ)
    if world:
        node = world["node"]
        os.environ.update(
            RANK=str(world["rank"]),
            LOCAL_RANK=str(world["rank"] % node),
            WORLD_SIZE=str(world["size"]),
            LOCAL_WORLD_SIZE=str(node),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT="29500",
        )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


preflight = ConfiguredCommand(
    "preflight",
    callback=run,
    params=[OWN, FAKE, WORLD, RANK, DATA, *(option for option in trace.params if option.name not in LEFT_OUT)],
    help=run.__doc__,
    short_help="Trace a training that wants a GPU, without one.",
    context_settings=dict(trace.context_settings),
)
