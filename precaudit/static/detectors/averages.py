"""PA103, PA101 and PA708: weights that are written in place: an average of weights, a step that is taken by hand."""

from __future__ import annotations

from typing import Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Dtypes, Param, Spot, Tensor, Value, is_low
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import handwritten, operands
from precaudit.static.overlays.torch.optimizers import trainable


def listen(bus: Bus) -> None:
    bus.on("average", _averaged, low_only=False)


def _averaged(op: Op) -> None:
    """A module's own method, as AveragedModel's `update_parameters`, averages its weights."""
    for param in op.operands:
        if isinstance(param, Param) and is_low(param.dtype):
            average(op.run, param.dtype, param.store.get("spot") or op.spot, op.node)


def parameter_written(run: Run, param: Param, name: str, args: list[Value], node: Any) -> None:
    """A parameter was changed in place by a tensor method or an augmented assignment."""
    dtype, instance = param.dtype, handwritten.current_optimizer(run)
    if instance is None and name != "zero":
        _stale(run, param, node)
    if not is_low(dtype):
        return
    source = operands.marks_of([operands.as_tensor(run, a) for a in args])
    if instance is not None:
        if name in ("copy", "zero", "fill") or not trainable(param) or handwritten.compensated(instance):
            return
        because = ("parameters were cast here", param.store.get("spot"))
        detail = "the optimizer's step writes them in place"
        run.facts.add(Kind.HOLDS, run.spot(node), dtype, Role.MASTER_WEIGHT, because, detail)
        return
    if "gradient" in source and name in ("add", "sub", "addcdiv") and trainable(param) and not run.grad():
        trained_by_hand(run, dtype, param.store.get("spot"), node)
        return
    computed = any(isinstance(a, Tensor) and a.op in ("Add", "Subtract", "lerp") for a in args)
    averaged = name in ("add", "lerp", "sub") or (name == "copy" and computed)
    if averaged and "weights" in source and "gradient" not in source:
        average(run, dtype, param.store.get("spot") or run.spot(node), node)


def _stale(run: Run, param: Param, node: Any) -> None:
    """A float32 weight is written inside the region whose cached copy of it goes on being used."""
    region = run.autocast()
    if region is None or id(region) not in run.training.regions_used or region.spot is None:
        return
    if param.dtype == frozenset({"float32"}) and trainable(param):
        because = ("the region that caches its copy begins here", region.spot)
        run.facts.add(Kind.AUTOCAST, run.spot(node), region.dtype, None, because, enabled=True, stale_cache=True)


def trained_by_hand(run: Run, dtype: Dtypes | None, made: Spot | None, node: Any) -> None:
    """Gradients are applied to low weights in place, outside any optimizer."""
    because = ("parameters were cast here", made)
    detail = "gradients are applied to them in place"
    run.facts.add(Kind.HOLDS, run.spot(node), dtype, Role.MASTER_WEIGHT, because, detail)


def average(run: Run, dtype: Dtypes | None, spot: Spot, node: Any) -> None:
    """Low weights become an average of themselves and of others."""
    because = ("the average is updated here", run.spot(node))
    detail = "most of its steps are too small for that dtype"
    run.facts.add(Kind.HOLDS, spot, dtype, Role.ACCUMULATOR, because, detail, what="ema")
