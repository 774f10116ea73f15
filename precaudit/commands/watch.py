"""`precaudit watch`: a whole training, looked at again where something new begins, with a line for each event."""

from __future__ import annotations

from typing import Any

from precaudit.commands.trace import ConfiguredCommand, trace

LEFT_OUT: dict[str, Any] = {"keep_going": True, "watch": True, "no_inject": False, "verify_undisturbed": False}
"""Options of trace that are not asked for here, and what they are."""


def run(**options: Any) -> int:
    """Run COMMAND to its end, watch two steps, and look again where something new begins.

    Each event is a line of .precaudit/latest/events.jsonl, the report there is renewed as the run goes on, and the
    exit code tells what it came to.

    \b
    precaudit watch train.py --lr 1e-4
    """
    traced: Any = trace.callback
    return int(traced(**options, **LEFT_OUT, events=True))


watch = ConfiguredCommand(
    "watch",
    callback=run,
    params=[option for option in trace.params if option.name not in LEFT_OUT],
    help=run.__doc__,
    short_help="Trace a whole training, with a line for each event.",
    context_settings=dict(trace.context_settings),
)
