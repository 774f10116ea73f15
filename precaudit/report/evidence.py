"""The one table that turns a measured number into words."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

SENTENCES: Mapping[str, str] = {
    "updates_lost": "{share} of non-zero updates were rounded away",
    "applied_update_error": "the update applied differs from the exact one by {share} of its norm",
    "state_frozen": "{share} of the elements could not move",
    "hyperparameter_error": "the value held is off by {share}",
    "gradient_underflow": "{share} of the gradients underflow",
    "gradient_subnormal": "{share} of the non-zero gradients are subnormal",
    "gradient_zeros": "{share} of the gradients are zero",
    "gradient_lost": "{share} of the gradients are zero only because of the dtype",
    "accumulation_loss": "the sum over micro-batches is off by {share}",
    "reduction_error": "the reduction is off by {share} of the gradient's norm",
    "loss_error": "the loss is off by {share}",
    "log_prob_error": "log-probabilities are off by {number} on average",
    "positions_wrong": "{share} of the positions are wrong",
    "phase_error": "phases are off by up to {number} radians",
    "relative_error": "the result is off by {share}",
    "ties": "{share} of the decisions are ties made by rounding",
    "certain_share": "{share} of the probabilities are exactly 0 or 1",
    "inf_share": "{share} of the values are inf or nan",
    "skipped_share": "{share} of the attempted steps were skipped",
    "hollow": "{share} of the float32 elements hold only bfloat16 values",
    "headroom": "{number} bits of room below the largest finite value",
    "absmax": "the largest magnitude is {number}",
    "scale": "the loss scale is {number}",
    "loss_scale": "the loss scale was {number}",
    "lifting_scale": "a loss scale of {number} would lift them into range",
    "grad_norm": "the gradient norm is {number}",
    "attempts": "{number} attempts",
    "consecutive": "{number} in a row",
}
"""Evidence name -> sentence; `{share}` is a ratio as a percentage, `{number}` the number as it is."""


def sentence(name: str, value: float) -> str:
    """One measured number in words; a name without a sentence is shown as itself."""
    template = SENTENCES.get(name)
    if template is None:
        return f"{name.replace('_', ' ')}: {number(value)}"
    return template.format(share=share(value), number=number(value))


def share(ratio: float) -> str:
    """A ratio as a percentage that never rounds a loss to nothing, nor a nearly full one to all: 0.9996 is 99.96 %."""
    if not isfinite(ratio):
        return str(ratio)
    percent = ratio * 100
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if abs(percent) < 0.001:
        return "under 0.001 %"
    digits = 0 if 10 <= percent <= 98 else 1 if 1 <= percent <= 98 else 2 if percent < 1 else 1
    while float(f"{percent:.{digits}f}") in (0.0, 100.0) and digits < 4:
        digits += 1
    text = f"{percent:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def number(value: float) -> str:
    """A number with at most four significant digits, whole where it is whole."""
    if isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"
