"""`precaudit preflight`: traces a training that wants a GPU where there is none, with the dtypes of CUDA."""

from __future__ import annotations

from typing import Any

import click

from precaudit.commands.trace import ConfiguredCommand, trace

DEVICES = ("h100", "a100", "v100", "mi300", "b200")
"""The names of `preflight/devices.py`."""
OWN = click.Option(
    ["--device"],
    type=click.Choice(DEVICES),
    default=DEVICES[0],
    show_default=True,
    help="What torch.cuda answers as.",
)
LEFT_OUT: dict[str, Any] = {"eager": True, "no_inject": False, "verify_undisturbed": False}
"""Options of trace that have no meaning here, and what they are: everything runs eagerly."""


def run(device: str, **options: Any) -> int:
    """Run COMMAND as if a CUDA device were there, on CPU tensors, and report its precision.

    \b
    precaudit preflight train.py --lr 1e-4
    precaudit preflight torchrun --nproc-per-node 2 train.py
    """
    traced: Any = trace.callback
    return int(traced(**options, **LEFT_OUT, preflight={"device": device}))


preflight = ConfiguredCommand(
    "preflight",
    callback=run,
    params=[OWN, *(option for option in trace.params if option.name not in LEFT_OUT)],
    help=run.__doc__,
    short_help="Trace a training that wants a GPU, without one.",
    context_settings=dict(trace.context_settings),
)
