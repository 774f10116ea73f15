"""PA401, PA701, PA208 and PA201: what a backward pass begins at, under which region, and what its gradients add to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.detectors.reaching import Rounded, enters
from precaudit.static.language.values import Dtypes, Spot, Tensor, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.overlays.torch import operands
from precaudit.static.overlays.torch.opnames import LOSSES
from precaudit.static.overlays.torch.training import in_a_test


@dataclass(frozen=True, slots=True)
class Summed:
    """On a path: this backward pass ran, and nothing cleared its gradients since."""

    node: Any


def listen(bus: Bus) -> None:
    Losses(bus)


class Losses:
    """The backward passes of a file; whether they train anything is known at the end."""

    def __init__(self, bus: Bus) -> None:
        self._summed: list[tuple[Spot, Dtypes]] = []
        """Backward passes that add to gradients of low parameters, and the dtype of these."""
        self._under_autocast: list[tuple[Spot, Spot, bool]] = []
        """Backward passes in a region, where it begins, and whether they certainly begin at a loss."""
        self._cleared = False
        on = partial(bus.on, low_only=False)
        on("backward", self._begins)
        on("backward.gradient", self._sums)
        on("zero_grad", self._clears)
        bus.on(LOSSES, _term)
        bus.on("sum mean", _written_out)
        bus.on_end(self._end)

    def _begins(self, op: Op) -> None:
        region = op.run.autocast()
        if region is not None and region.spot is not None and region.enabled is not False:
            of_a_loss = "loss" in operands.marks_of([op.operand(0)]) or bool(op.run.loops())
            self._under_autocast.append((op.spot, region.spot, of_a_loss))
        self._sums(op)

    def _sums(self, op: Op) -> None:
        """A second backward before the gradients of low parameters are cleared adds to them in their dtype."""
        marks = operands.marks_of([op.operand(0)])
        low = frozenset(mark.removeprefix("weights:") for mark in marks if mark.startswith("weights:"))
        if not low or op.run.training.hooked:
            return
        paths, seen = op.run.interpreter.paths, Summed(op.node)
        if any(seen in state for state in paths):
            self._summed.append((op.spot, low))
        op.run.interpreter.set_paths(state | {seen} for state in paths)

    def _clears(self, op: Op) -> None:
        self._cleared = True
        paths = op.run.interpreter.paths
        op.run.interpreter.set_paths(frozenset(e for e in state if not isinstance(e, Summed)) for state in paths)

    def _end(self, run: Run) -> None:
        training = run.training
        for spot, low in self._summed if self._cleared and training.in_earnest else ():
            run.facts.add(Kind.HOLDS, spot, low, Role.GRADIENT_ACCUMULATION, None, ".grad has the parameters' dtype")
        for began, region, of_a_loss in self._under_autocast:
            # Once through the top level of a script that updates nothing: an operation is tried out there.
            if of_a_loss or training.in_earnest or (began.function and not in_a_test(began)):
                run.facts.add(Kind.BACKWARD, began, "", None, ("the region begins here", region), autocast=True)
        for loss, spot, in_loop in training.begun:
            if training.updated or (not in_a_test(spot) and (in_loop or training.in_earnest)):
                _low(run, loss, spot)
        for loss, spot in () if training.mixed else training.returned:
            _low(run, loss, spot)
        if training.unscaled:
            for spot, low_from in training.unscaled_backward:
                because = ("float16 comes from here", low_from)
                run.facts.add(Kind.HOLDS, spot, "float16", Role.GRADIENT, because, "", loss_scaling="none")


def _term(op: Op) -> None:
    """A loss that came out low may be one term of several: others promote the sum, which keeps what was rounded."""
    if isinstance(op.result, Tensor) and op.result.zero_dim and op.result.dtype is not None:
        enters(op.result, Rounded(op.spot, op.result.dtype, _entered))


def _written_out(op: Op) -> None:
    """`(prediction - x).square().mean()`: a term that no function of torch's is the loss of."""
    region = op.run.autocast()
    switched_off = region is not None and region.enabled is False  # PA703 tells that
    if "differentiable" in operands.marks_of([op.first]) and not switched_off:
        _term(op)


def _entered(op: Op, rounded: Rounded) -> None:
    loss = op.first
    if isinstance(loss, Tensor) and not loss.low:
        because = ("backward starts from a sum that it is a term of", op.spot)
        op.run.facts.add(Kind.HOLDS, rounded.spot, rounded.dtype, Role.LOSS, because)


def _low(run: Run, loss: Value, spot: Spot) -> None:
    """The loss that a backward pass begins at is low."""
    if isinstance(loss, Tensor) and loss.low and "hand_scaled" not in loss.marks:
        at = (loss.low_at if "loss" in loss.marks else None) or loss.spot or spot
        run.facts.add(Kind.HOLDS, at, loss.dtype, Role.LOSS, ("backward starts from it here", spot))
