"""Which gradients carry a loss scale, whose, and since when; and which steps a scaler skipped."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Site
from .. import torch_private as private
from ..events import (
    Attempted,
    Bus,
    GradientsRescaled,
    LossScaled,
    RestBegan,
    ScaleRead,
    ScalerStepBegan,
    ScalerStepEnded,
    ScalerUpdated,
    StepOver,
    Unscaled,
)
from ..process.ledger import Observation
from ..sites import user_site
from .graph import GraphRecomputed, GraphWalked, Walk
from .optimizers import parameters
from .tensors import Tensors
from .window import Window

LARGEST_SANE_SCALE = 2.0**24


class Float16Gradients(NamedTuple):
    """What float16 gradients are told under: who scales the loss says that they are there, their values how small."""

    scaled: bool
    """A scaler or a framework scaled the loss."""


@dataclass
class Skips:
    """The loss scales at which steps were skipped."""

    largest: float = 0.0
    smallest: float = float("inf")

    def at(self, scale: float) -> None:
        self.largest, self.smallest = max(self.largest, scale), min(self.smallest, scale)

    def observation(self, window: Window, site: Site | None) -> Observation | None:
        """What is to be said of skipping that is more than the search for a first scale."""
        if self.largest > LARGEST_SANE_SCALE:
            reason = "scale-too-large"
        elif self.smallest < 1:
            reason = "scale-below-one"
        elif window.stuck:
            reason = "consecutive"
        else:
            return None
        return Observation(
            Kind.SKIPPED_STEPS,
            site=site,
            detail=f"{window.skipped} of {window.attempts} attempts skipped",
            count=window.skipped,
            attrs={"reason": reason},
            evidence={"skipped_share": window.skipped / max(1, window.attempts), "loss_scale": self.largest},
        )


@dataclass
class ScalerState:
    """What one GradScaler did so far."""

    generation: int = 0
    """Rises with every update."""
    last_update: Site | None = None
    scaled_nodes: set[int] = field(default_factory=set)
    """Autograd sequence numbers of the losses it scaled."""
    losses: list[Any] = field(default_factory=list)
    """The dtypes of the losses it was given."""
    uses: int = 0
    saw_float16: bool = False
    saw_bfloat16: bool = False
    skips: Skips = field(default_factory=Skips)


class LossScale:
    """What the scalers of one process do."""

    def __init__(self, bus: Bus, tensors: Tensors) -> None:
        self._bus, self._tensors = bus, tensors
        self.scalers: weakref.WeakKeyDictionary[Any, ScalerState] = weakref.WeakKeyDictionary()
        self.of_backward: Any = None
        """The scaler that scaled the loss of the last backward."""
        self.read = False
        """The script asked for the scale since backward: it may unscale by hand."""
        self.rescaled = False
        """Gradients were multiplied by something that is not their own norm since the last step."""
        self.adds_unscaled: Any = None
        """The scaler on whose scaled gradients the backward that begins adds those of an unscaled loss."""
        self.missing = False
        """float16 gradients came from a loss that nothing scaled."""
        self.steps = 0
        """Steps of scalers that are going on."""
        bus.on(LossScaled, self._loss_scaled, always=True)
        bus.on(ScaleRead, self._scale_read)
        bus.on(GraphWalked, self._graph_walked)
        bus.on(GraphRecomputed, lambda event: self._reached(event.found))
        bus.on(Unscaled, self._unscaled)
        bus.on(ScalerStepBegan, self._step_began, always=True)
        bus.on(ScalerStepEnded, self._step_ended, always=True)
        bus.on(ScalerUpdated, self._updated, always=True)
        bus.on(Attempted, self._attempted, always=True)
        bus.on(GradientsRescaled, self._gradients_rescaled)
        bus.on(StepOver, self._step_over)
        bus.on(RestBegan, self._rest_began)

    def state(self, scaler: Any) -> ScalerState:
        """What this scaler did so far."""
        if scaler not in self.scalers:
            self.scalers[scaler] = ScalerState()
        return self.scalers[scaler]

    # -- what the program does

    def _loss_scaled(self, event: LossScaled) -> None:
        state = self.state(event.scaler)
        state.uses += 1
        if self._bus.rests:  # nobody looks at the backward that this is for
            return
        for before, after in zip(event.given, event.scaled, strict=False):
            if after.grad_fn is not None:
                state.scaled_nodes.add(private.sequence_number(after.grad_fn))
            state.losses.append(before.dtype)

    def _graph_walked(self, event: GraphWalked) -> None:
        """Backward reaches leaves from a loss that a scaler scaled, or from an unscaled one."""
        was_read, self.read = self.read, False
        numbers = [number for _, number in event.found.scalars]
        of = (one for one, state in self.scalers.items() if not state.scaled_nodes.isdisjoint(numbers))
        scaler = self.of_backward = next(of, None)
        self.adds_unscaled = None
        if scaler is None:
            if event.trains and not was_read and not self.rescaled:
                self.adds_unscaled = next(filter(None, map(self._scaler_on, event.found.leaves.values())), None)
            self._forget(event.found.leaves.values())
        else:
            self._reached(event.found)

    def _reached(self, found: Walk) -> None:
        """The gradients of these leaves carry the scale of the loss that this backward began from."""
        if self.of_backward is not None:
            state = self.state(self.of_backward)
            state.saw_float16 |= torch.float16 in found.activations
            state.saw_bfloat16 |= torch.bfloat16 in found.activations
            for leaf in found.leaves.values():
                self._tensors.meet(leaf).scaled = (weakref.ref(self.of_backward), state.generation)

    def _rest_began(self, event: RestBegan) -> None:
        """What backward leaves scaled is not told any more: what it left before says nothing of later gradients."""
        for leaf in self._tensors.leaves():
            leaf.scaled = None
        for state in self.scalers.values():
            state.losses.clear()
            state.scaled_nodes.clear()

    def _scale_read(self, event: ScaleRead) -> None:
        self.read = True

    def _gradients_rescaled(self, event: GradientsRescaled) -> None:
        self.rescaled = True

    def _unscaled(self, event: Unscaled) -> None:
        self._forget(parameters(event.optimizer))

    def _step_began(self, event: ScalerStepBegan) -> None:
        self.steps += 1

    def _step_ended(self, event: ScalerStepEnded) -> None:
        """What was stepped is spent: the next backward may leave gradients that are zeroed before its next step."""
        self.steps -= 1
        if not event.failed:
            self._forget(parameters(event.optimizer))

    def _attempted(self, event: Attempted) -> None:
        if event.skipped and event.scaler is not None:
            scale = getattr(event.scaler, "_scale", None)
            self.state(event.scaler).skips.at(float(scale.item()) if isinstance(scale, Tensor) else 0.0)

    def _updated(self, event: ScalerUpdated) -> None:
        state = self.state(event.scaler)
        state.generation += 1
        state.last_update = user_site()
        state.scaled_nodes.clear()

    def _step_over(self, event: StepOver) -> None:
        self.rescaled = False

    def _forget(self, leaves: Iterable[Tensor]) -> None:
        for leaf in filter(None, map(self._tensors.leaf, leaves)):
            leaf.scaled = None

    # -- questions

    @property
    def used(self) -> list[Any]:
        """The scalers that scaled something."""
        return [scaler for scaler, state in self.scalers.items() if state.uses]

    @property
    def may_be_gone(self) -> bool:
        """The script may have taken the scale out by hand since backward."""
        return self.read or self.rescaled

    def _scaler_on(self, leaf: Tensor) -> Any:
        """The scaler whose scale this leaf's `.grad` carries; None where there is none, or it was reset."""
        known = self._tensors.leaf(leaf)
        if known is None or known.scaled is None or leaf.grad is None or not known.micro_batches:
            return None
        held = known.gradient is not None and known.gradient.record is self._tensors.of(private.local(leaf.grad))
        return known.scaled[0]() if held else None

    def is_on(self, leaf: Tensor) -> bool:
        """Whether the gradient of this leaf carries a scale."""
        known = self._tensors.leaf(leaf)
        return known is not None and known.scaled is not None

    def generation_of(self, leaf: Tensor, scaler: Any) -> int | None:
        """In which generation this scaler scaled the gradient of this leaf; None where it did not."""
        known = self._tensors.leaf(leaf)
        if known is None or known.scaled is None or known.scaled[0]() is not scaler:
            return None
        return known.scaled[1]
