"""What only the whole file can tell, once all of it has been run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precaudit.model.vocabulary import Kind, Role
from precaudit.static import overlays
from precaudit.static.language.values import Param
from precaudit.static.overlays.torch import backward, flags, optimizers, sharding
from precaudit.static.overlays.torch.training import in_a_test

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def _bare_regions(run: Run) -> None:
    """A region without a dtype whose default is not what the other regions of its device say."""
    for region in run.training.regions:
        same = [r.dtype for r in run.training.regions if r.dtype_given and r.devices == region.devices]
        if region.dtype_given or not same or None in same or len(set(same)) != 1 or region.spot is None:
            continue
        if region.dtype is not None and len(region.dtype) == 1 and region.dtype != same[0]:
            run.facts.add(Kind.AUTOCAST, region.spot, region.dtype, enabled=True, dtype_given=False)


def _built_by_default(run: Run) -> None:
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


def finish(run: Run) -> None:
    """Reports what only the whole file can tell."""
    for made in run.training.optimizers:
        if not made.store.get("examined"):
            optimizers.examine(run, made)
    for spot, low in run.training.summed if run.training.cleared and run.training.in_earnest else ():
        run.facts.add(Kind.HOLDS, spot, low, Role.GRADIENT_ACCUMULATION, None, ".grad has the parameters' dtype")
    for loss, spot, in_loop in run.training.begun:
        if (in_loop and not in_a_test(spot)) or run.training.in_earnest:
            backward.begins(run, loss, spot)
    updated = run.training.updated or run.training.looped or run.training.custom
    if updated and not run.training.saw_scaler and not run.outside_scaling:
        for spot, region in run.training.unscaled_backward:
            run.facts.add(
                Kind.HOLDS,
                spot,
                "float16",
                Role.GRADIENT,
                ("float16 comes from here", region),
                "",
                loss_scaling="none",
            )
        for spot, made_low in run.training.low_adapters if run.training.unscaled_backward else ():
            run.facts.add(
                Kind.HOLDS,
                spot,
                "float16",
                Role.ADAPTER_PARAMETER,
                ("they became float16 here", made_low),
                "",
                loss_scaling="none",
            )
    for loss, spot in () if run.training.mixed else run.training.returned:
        backward.begins(run, loss, spot)
    _true_half(run)
    for _, _, spot, dtype in run.training.untied:
        run.facts.add(Kind.CAST, spot, dtype or "", unties=True)
    _bare_regions(run)
    _built_by_default(run)
    sharding.policies(run)
    sharding.unscaled(run)
    for conclude in overlays.answering("finish"):
        conclude(run)
    flags.finish(run)
    for scaler in run.training.scalers:
        seen = run.training.losses.get(id(scaler.store))
        if scaler.enabled and seen == {"bfloat16"} and scaler.spot is not None:
            run.facts.add(
                Kind.LOSS_SCALING, scaler.spot, "bfloat16", Role.LOSS_SCALE, None, "", needed=False, dynamic=True
            )
    for key, spot in run.training.never_updated:
        if key not in run.training.updates:
            run.facts.add(Kind.SCALER_STEP, spot, update="missing")
