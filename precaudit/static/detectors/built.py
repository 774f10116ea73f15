"""PA104, PA402, PA807 and PA812: how modules and their trainers are made: low by default, low statistics, ties cut."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Param, is_low
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import optimizers
from precaudit.static.overlays.torch.training import in_a_test


def listen(bus: Bus) -> None:
    bus.on("running_statistics", _statistics, low_only=False)
    bus.on_end(_by_default)
    bus.on_end(_true_half)
    bus.on_end(_untied)


def _statistics(op: Op) -> None:
    """A BatchNorm in training mode updates its running statistics, which are low."""
    kept = op.operand(0)
    if isinstance(kept, Param) and is_low(kept.dtype) and op.run.grad():
        because = ("they are updated here", op.spot)
        op.run.facts.add(
            Kind.HOLDS, kept.store.get("spot") or op.spot, kept.dtype, Role.NORM_RUNNING_STATISTICS, because
        )


def _by_default(run: Run) -> None:
    """A module that a low default dtype made low, and that is not frozen, where anything is trained."""
    training = run.training
    for set_at, dtype, built, store in training.built_by_default:
        learns = any(isinstance(p, Param) and optimizers.trainable(p) for p in store.values())
        if learns and (training.trained or training.optimizers or training.custom):
            run.facts.add(Kind.DEFAULT_DTYPE, set_at, dtype, None, ("a module is built here", built))


def _true_half(run: Run) -> None:
    """A trainer or a Fabric that keeps parameters in 16 bits, unless it only predicts, or is only tried out."""
    training = run.training
    trains = training.trained or training.optimizers or training.custom
    for spot, precision, runner in training.true_half:
        fits = "\0predicts" not in runner if "\0trainer" in runner else trains and not in_a_test(spot)
        if fits or "\0trains" in runner:
            run.facts.add(Kind.CONFIG, spot, precision=precision, key="precision")


def _untied(run: Run) -> None:
    """A parameter that modules shared was replaced in one of them."""
    for _, _, spot, dtype in run.training.untied:
        run.facts.add(Kind.CAST, spot, dtype or "", unties=True)
