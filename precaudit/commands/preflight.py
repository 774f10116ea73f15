"""`precaudit preflight`: traces a training that wants a GPU where there is none, with the dtypes of CUDA."""

from __future__ import annotations

from collections.abc import Sequence
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
NOT_BUILT = (
    click.Option(["--fake"], is_flag=True, hidden=True),
    click.Option(["--data"], hidden=True),
    click.Option(["--world-size"], hidden=True),
    click.Option(["--rank"], hidden=True),
)
"""Named so that asking for them is answered in one line."""
LEFT_OUT: dict[str, Any] = {"eager": True, "no_inject": False, "verify_undisturbed": False}
"""Options of trace that have no meaning here, and what they are: everything runs eagerly."""


def _refuse_what_is_not_built(
    fake: bool, data: str | None, ranks: Sequence[str | None], command: Sequence[str]
) -> None:
    """One line for each thing that a preflight does not do yet."""
    if fake or data:
        asked = "--fake" if fake else "--data"
        raise UsageError(
            f"{asked}: not built: a preflight computes real values on this CPU; make the model small instead"
        )
    if any(value is not None for value in ranks):
        raise UsageError(
            "--world-size: not built: ranks are real processes here; start as many as this machine bears with torchrun"
        )
    for word, value in zip(command, [*command[1:], ""], strict=True):
        name, _, joined = word.partition("=")
        if name in ("--nnodes", "--num_machines", "--num_nodes") and (joined or value) not in ("1", "1:1"):
            raise UsageError(
                f"{name} {joined or value}: a preflight runs the ranks of one node; say {name} 1 and fewer processes"
            )


def run(device: str, **options: Any) -> int:
    """Run COMMAND as if a CUDA device were there, on CPU tensors, and report its precision.

    \b
    precaudit preflight train.py --lr 1e-4
    precaudit preflight torchrun --nproc-per-node 2 train.py
    """
    _refuse_what_is_not_built(
        options.pop("fake"), options.pop("data"), [options.pop("world_size"), options.pop("rank")], options["command"]
    )
    traced: Any = trace.callback
    return int(traced(**options, **LEFT_OUT, preflight={"device": device}))


preflight = ConfiguredCommand(
    "preflight",
    callback=run,
    params=[OWN, *NOT_BUILT, *(option for option in trace.params if option.name not in LEFT_OUT)],
    help=run.__doc__,
    short_help="Trace a training that wants a GPU, without one.",
    context_settings=dict(trace.context_settings),
)
