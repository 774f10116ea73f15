"""Turns a measured number into words; the sentences stand in the registry, model/evidence.py."""

from __future__ import annotations

from math import isfinite

from precaudit.model.evidence import EVIDENCE, Unit


def sentence(name: str, value: float) -> str:
    """One measured number in words; a name that is not in the registry is shown as itself."""
    known = EVIDENCE.get(name)
    if known is None:
        return f"{name.replace('_', ' ')}: {number(value)}"
    return known.sentence.format(share(value) if known.unit is Unit.SHARE else number(value))


def is_share(name: str) -> bool:
    """Whether a number of this name is a ratio, which can be drawn as a bar."""
    return name in EVIDENCE and EVIDENCE[name].unit is Unit.SHARE


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
