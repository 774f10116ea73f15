"""PA412: the logarithm of uniform draws in low precision, of which a share is 0."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Tensor
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op


def listen(bus: Bus) -> None:
    bus.on("log", _logarithm)


def _logarithm(op: Op) -> None:
    if isinstance(op.first, Tensor) and isinstance(op.result, Tensor) and "uniform" in op.first.marks:
        op.run.facts.add(Kind.OP, op.spot, op.result.dtype, op="low-precision-sampling")
