"""What was rounded on its way into a loss: a mark that passes through sums and products until backward begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from precaudit.static.language.values import Dtypes, Mark, Spot, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op


class Rounded(NamedTuple):
    """Something low stands at `spot`; `report` says so, given where it has met a loss."""

    spot: Spot
    dtype: Dtypes
    report: Callable[[Op, Rounded], None]


ROUNDED: Mark[Rounded] = Mark(stays=True)
"""What entered this sum or product."""


def listen(bus: Bus) -> None:
    bus.on("mul div add sub neg sum mean flatten pow square abs", _passed, low_only=False)
    bus.on("backward", _reached, low_only=False)


def enters(value: Value, rounded: Rounded) -> None:
    """Notes that `value` carries what was rounded; nothing is said unless a loss is made of it."""
    ROUNDED.put(value, rounded)


def _passed(op: Op) -> None:
    if ROUNDED.of(op.result) is None:
        ROUNDED.put(op.result, next((found for found in map(ROUNDED.of, op.tensors) if found), None))


def _reached(op: Op) -> None:
    found = ROUNDED.of(op.first)
    if found is not None:
        found.report(op, found)
