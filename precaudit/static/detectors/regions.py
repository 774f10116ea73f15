"""PA702 to PA705, PA707 and PA710: what is done by hand against autocast, and how autocast is asked for."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Autocast, DType, Dtypes, Ref, Spot, Tensor, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch.opnames import FLOAT32_MATH, LOSSES, SAME

DEPRECATED = {
    "torch.cuda.amp.autocast": 'torch.amp.autocast("cuda", ...)',
    "torch.cuda.amp.GradScaler": 'torch.amp.GradScaler("cuda", ...)',
    "torch.cpu.amp.autocast": 'torch.amp.autocast("cpu", ...)',
    "torch.cpu.amp.GradScaler": 'torch.amp.GradScaler("cpu", ...)',
}
"""Old name -> what to write for it."""


def listen(bus: Bus) -> None:
    Regions(bus)
    bus.on("autocast GradScaler", _deprecated, low_only=False)
    bus.on("autocast", _float16, low_only=False)
    bus.on("cast", _cast)
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
        _half_cast(op.run, given.spot, given.dtype, region.spot)


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


def _cast(op: Op) -> None:
    """What autocast made low is cast by hand to the other low dtype."""
    region, value, target = op.run.autocast(), op.operand(0), op.operand(1)
    if region is None or not region.enabled or not op.run.grad() or not isinstance(value, Tensor):
        return
    again = value.low and value.dtype == region.dtype and "differentiable" in value.marks
    if again and isinstance(target, DType) and not target.names & (value.dtype or frozenset()):
        _half_cast(op.run, op.spot, target.names, region.spot)


def _half_cast(run: Run, spot: Spot | None, dtype: Dtypes | None, region: Spot | None) -> None:
    """A value was cast low by hand inside a region, so that an operation in float32 gets rounded values."""
    if spot is not None and region is not None:
        run.facts.add(Kind.CAST, spot, dtype, None, ("the region begins here", region), under_autocast=True)


def _deprecated(op: Op) -> None:
    """torch.cuda.amp.*: reported unless the code asks for the version or catches the failure first."""
    called = op.operand(0)
    name = called.name if isinstance(called, Ref) else ""
    if name in DEPRECATED and not op.run.interpreter.guarded():
        op.run.facts.add(Kind.CALL, op.spot, "", None, None, f"use {DEPRECATED[name]}", api=name, deprecated=True)


def _float16(op: Op) -> None:
    """A region in float16, chosen by the script, that a GradScaler goes with."""
    region = op.result
    if not isinstance(region, Autocast) or region.enabled is False or region.dtype != frozenset({"float16"}):
        return
    if region.dtype_given and op.run.training.saw_scaler and region.spot is not None:
        op.run.facts.add(Kind.AUTOCAST, region.spot, region.dtype, enabled=True, prefer="bfloat16")


class Regions:
    """The regions that are entered: one without a dtype takes its device's default, whatever the others say."""

    def __init__(self, bus: Bus) -> None:
        self._entered: list[Autocast] = []
        bus.on("autocast.enter", self._enter, low_only=False)
        bus.on_end(self._end)

    def _enter(self, op: Op) -> None:
        if isinstance(op.result, Autocast):
            self._entered.append(op.result)

    def _end(self, run: Run) -> None:
        for region in self._entered:
            same = [r.dtype for r in self._entered if r.dtype_given and r.devices == region.devices]
            if region.dtype_given or not same or None in same or len(set(same)) != 1 or region.spot is None:
                continue
            if region.dtype is not None and len(region.dtype) == 1 and region.dtype.isdisjoint(same[0] or ()):
                run.facts.add(Kind.AUTOCAST, region.spot, region.dtype, enabled=True, dtype_given=False)
