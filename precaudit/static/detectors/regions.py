"""PA702, PA703 and PA705: what is done by hand against autocast, and what it cannot run."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Tensor, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import casts
from precaudit.static.overlays.torch.opnames import FLOAT32_MATH, LOSSES, SAME


def listen(bus: Bus) -> None:
    bus.on(SAME, lambda op: _widened(op, op.first), low_only=False)
    bus.on(LOSSES, lambda op: _widened(op, op.operand(0)), low_only=False)
    bus.on(FLOAT32_MATH - LOSSES, lambda op: None if op.dtype_given else _low_in_a_disabled_region(op))
    bus.on(LOSSES, _low_in_a_disabled_region)
    bus.on("binary_cross_entropy", _cross_entropy, low_only=False)


def _widened(op: Op, given: Value) -> None:
    """Autocast widens a value that was cast low by hand just before."""
    region, result = op.run.autocast(), op.result
    if region is None or not isinstance(given, Tensor) or not isinstance(result, Tensor) or op.dtype_given:
        return
    if given.op == "cast" and given.low and "recast" in given.marks and result.dtype == frozenset({"float32"}):
        casts.half_cast(op.run, given.spot, given.dtype, region.spot)


def _low_in_a_disabled_region(op: Op) -> None:
    """Autocast is off, so that this is exact; and it is handed something low from outside."""
    region, given = op.run.disabled_region(), op.operand(0)
    if region is None or region.spot is None or not isinstance(given, Tensor) or not given.low:
        return
    if op.run.outside_region(given, region):
        because = ("low precision is used here", op.spot)
        op.run.facts.add(Kind.AUTOCAST, region.spot, given.dtype, None, because, "", enabled=False, upcast=False)


def _cross_entropy(op: Op) -> None:
    """PyTorch refuses binary_cross_entropy under autocast."""
    region, given = op.run.autocast(), op.first
    if region is None or region.spot is None or region.enabled is False or not isinstance(given, Tensor):
        return
    spot, dtype = op.run.loss_built or op.spot, given.dtype
    op.run.facts.add(Kind.OP, spot, dtype or "", op="binary_cross_entropy", under_autocast=True)
