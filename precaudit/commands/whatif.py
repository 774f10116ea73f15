"""`precaudit whatif`: one step of a training with its matmuls in other formats, beside itself."""

from __future__ import annotations

import difflib
from typing import Any

import click

from precaudit.commands.trace import ConfiguredCommand, trace

FORMATS = ("float16", "bfloat16", "float8_e4m3", "float8_e5m2", "mxfp8", "mxfp4", "nvfp4")
"""The names of `runtime/exact/formats.py`."""


class FormatNames(click.ParamType):  # type: ignore[type-arg]
    """Names of formats: "float8_e4m3,mxfp8"."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        words = [word.strip() for word in str(value).split(",")] if isinstance(value, str) else list(value)
        for word in words:
            if word not in FORMATS:
                near = difflib.get_close_matches(word, FORMATS, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"formats: {', '.join(FORMATS)}"
                self.fail(f"'{word}' is not a format; {hint}", param, context)
        return tuple(dict.fromkeys(words))


OWN = [
    click.Option(
        ["--format", "formats"],
        type=FormatNames(),
        default="float8_e4m3,bfloat16",
        show_default=True,
        metavar="F,G",
        help=f"Any of {', '.join(FORMATS)}. In the first one each layer is tried alone, too.",
    ),
    click.Option(
        ["--rounding"], type=click.Choice(("nearest", "stochastic")), default="nearest", show_default=True,
        help="How operands are rounded.",
    ),
]  # fmt: skip
LEFT_OUT: dict[str, Any] = {
    "exact": True, "exact_modules": (), "exact_memory": 0, "no_inject": False, "verify_undisturbed": False
}  # fmt: skip
"""Options of trace that are not asked for here, and what they are."""


def run(formats: tuple[str, ...], rounding: str, **options: Any) -> int:
    """Run COMMAND, and one step of it beside itself with the operands of all matmuls rounded into other formats.

    The step itself computes what it always computes. The report says how far loss and gradients would be off in each
    format, which layers must stay as they are, and which roles could be lower.

    \b
    precaudit whatif --format float8_e4m3,mxfp8,nvfp4 train.py
    """
    traced: Any = trace.callback
    return int(traced(**options, **LEFT_OUT, what_if=formats, stochastic=rounding == "stochastic"))


whatif = ConfiguredCommand(
    "whatif",
    callback=run,
    params=[*OWN, *(option for option in trace.params if option.name not in LEFT_OUT)],
    help=run.__doc__,
    short_help="Run one step's matmuls in float8, MX or NVFP4 beside it.",
    context_settings=dict(trace.context_settings),
)
