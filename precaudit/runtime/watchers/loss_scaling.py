"""Loss scaling: calls out of order, gradients clipped or stepped on while scaled, scales out of all proportion."""

from __future__ import annotations

import sys
import weakref
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Cause, Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import (
    AddedUnscaled,
    Boundary,
    Bus,
    MayEndNow,
    ScaleRead,
    ScalerRefused,
    ScalerStepBegan,
    ScalerStepEnded,
    StepBegan,
    UnscaleBegan,
    Unscaled,
)
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.graph import GraphWalked
from ..trackers.loss_scale import LARGEST_SANE_SCALE, LossScale, ScalerState
from ..trackers.modules import Modules
from ..trackers.optimizers import parameters
from ..trackers.tensors import Leaf, Tensors
from ..trackers.window import Window
from . import Watcher

LONGEST_SANE_INTERVAL = 1_000_000
"""Steps between two growths; past this the scale is fixed for all practical purposes. The default is 2,000."""

REFUSALS = {
    "unscale_() has already been called": "unscale-twice",
    "No inf checks were recorded prior to update": "update-without-step",
}
"""How GradScaler words a call out of order -> the misuse."""


class Told(Enum):
    """What is told of each scaler or optimizer, once of each."""

    SCALE = auto()
    NEEDLESS = auto()
    EXTREME = auto()
    SKIPPED = auto()
    MISUSE = auto()
    NO_UPDATE = auto()
    PENALTY = auto()
    UNSCALE = auto()
    SCALED_STEP = auto()


class LossScaling(Watcher):
    """PA203 to PA206, PA210, PA212: what GradScaler is asked to do, and when."""

    def __init__(
        self, bus: Bus, ledger: Ledger, window: Window, loss_scale: LossScale, modules: Modules, tensors: Tensors
    ) -> None:
        self._bus, self._ledger, self._window, self._tensors = bus, ledger, window, tensors
        self._loss_scale, self._modules = loss_scale, modules
        self._penalty: Observation | None = None
        """Gradients of a scaled loss were taken for use in another loss, and the scale was not read since."""
        self._unscaled: set[Leaf] = set()
        """Those whose gradients were unscaled and have not been reset since."""
        self._stepped: dict[int, Any] = {}
        """Optimizers that a scaler stepped since the last backward, by `id`, and that scaler."""
        self._scaled_before: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """How many losses each scaler had scaled when it last stepped."""
        bus.on(GraphWalked, self._graph_walked)
        bus.on(ScaleRead, self._scale_read)
        bus.on(UnscaleBegan, self._unscale_began)
        bus.on(ScalerStepBegan, self._scaler_step_began)
        bus.on(Unscaled, self._unscale_ended)
        bus.on(ScalerStepEnded, self._scaler_step_ended)
        bus.on(StepBegan, self._step_began)
        bus.on(ScalerRefused, self._refused)
        bus.on(AddedUnscaled, self._added_unscaled)
        bus.on(Boundary, self._boundary)

    # -- backward

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            self._stepped.clear()
            self._unscaled = {leaf for leaf in self._unscaled if leaf.micro_batches}
        if self._penalty is not None:
            self._penalty.confirmed = True
            self._penalty = None
        if self._loss_scale.adds_unscaled is not None:
            detail = "those of a loss that was not scaled"
            self._misuse(self._loss_scale.adds_unscaled, "partly-scaled", user_site(), detail, raises=False)
        scaler = self._loss_scale.of_backward
        if scaler is None:
            return
        if event.differentiates:
            self._penalty = self._ledger.once(
                (Told.PENALTY, id(scaler)),
                Observation(
                    Kind.OP,
                    "float32",
                    Role.LOSS,
                    user_site(),
                    detail="autograd.grad ran on a scaled loss, and the scale was not read before the next backward",
                    attrs={"op": "gradient-penalty-scaled"},
                    confirmed=False,
                ),
            )
            return
        if any(map(self._is_unscaled, event.found.leaves.values())):
            detail = "scaled gradients were added to gradients that unscale_ had already divided"
            self._misuse(scaler, "backward-after-unscale", user_site(), detail, raises=False)

    def _added_unscaled(self, event: AddedUnscaled) -> None:
        detail = "a decay or a penalty, which no scale multiplies"
        self._misuse(event.scaler, "partly-scaled", event.site, detail, raises=False)

    def _is_unscaled(self, parameter: Tensor) -> bool:
        """Whether its `.grad` holds what unscale_ has divided, be it before an update."""
        leaf, gradient = self._tensors.leaf(parameter), parameter.grad
        if leaf is None or leaf not in self._unscaled or gradient is None or leaf.gradient is None:
            return False
        return leaf.gradient.record is self._tensors.of(private.local(gradient))

    def _unscale_ended(self, event: Unscaled) -> None:
        self._unscaled.update(filter(None, map(self._tensors.leaf, parameters(event.optimizer))))

    def _scale_read(self, event: ScaleRead) -> None:
        self._penalty = None

    # -- unscaling and the step

    def _unscale_began(self, event: UnscaleBegan) -> None:
        self._look_at_gradients(event.scaler, event.optimizer)

    def _scaler_step_began(self, event: ScalerStepBegan) -> None:
        if event.unscales:
            self._look_at_gradients(event.scaler, event.optimizer)

    def _look_at_gradients(self, scaler: Any, optimizer: Any) -> None:
        """Gradients that are about to be unscaled: float16 ones cannot be, those of an older scale would be wrong."""
        mine = parameters(optimizer)
        low = [p for p in mine if p.grad is not None and p.grad.dtype is torch.float16]
        if low:
            cause = self._modules.why_low(low[0])
            self._ledger.put(
                (Told.UNSCALE, id(optimizer)),
                Observation(
                    Kind.UNSCALE,
                    "float16",
                    Role.GRADIENT,
                    cause.site if cause and cause.site else self._modules.built_at.get(optimizer),
                    cause=Cause("the gradients were unscaled here", user_site()),
                    module=self._modules.name(low[0]),
                    detail=f"{len(low)} trainable parameters are float16",
                    count=len(low),
                ),
            )
            self._bus.tell(MayEndNow())
        state = self._loss_scale.state(scaler)
        held = [self._loss_scale.generation_of(p, scaler) for p in mine if p.grad is not None]
        if any(generation not in (None, state.generation) for generation in held):
            detail = "the scale was updated between backward and this optimizer's step"
            self._misuse(scaler, "update-per-optimizer", state.last_update, detail, raises=False)

    def _step_began(self, event: StepBegan) -> None:
        """A step that no GradScaler takes, on gradients that carry its scale."""
        scale = self._loss_scale
        if scale.steps or not self._window.tracing:
            return
        name = type(event.optimizer).__name__
        stepped = self._stepped.get(id(event.optimizer))
        if stepped is not None:
            detail = f"{name}.step on gradients that the scaler had already stepped on"
            self._misuse(stepped, "step-beside-scaler", user_site(), detail, raises=False)
        if scale.may_be_gone:
            return
        if not any(p.grad is not None and scale.is_on(p) for p in parameters(event.optimizer)):
            return
        self._ledger.once(
            (Told.SCALED_STEP, id(event.optimizer)),
            Observation(
                Kind.OPTIMIZER_STEP,
                site=user_site(),
                detail=f"{name}.step",
                attrs={"gradients": "scaled", "optimizer": name},
            ),
        )

    def _scaler_step_ended(self, event: ScalerStepEnded) -> None:
        if not event.failed:
            self._unscaled.difference_update(filter(None, map(self._tensors.leaf, parameters(event.optimizer))))
            self._stepped[id(event.optimizer)] = event.scaler
            self._scaled_before[event.scaler] = self._loss_scale.state(event.scaler).uses

    # -- misuse

    def _refused(self, event: ScalerRefused) -> None:
        """A call out of order that GradScaler itself refuses."""
        text = str(event.error)
        for words, misuse in REFUSALS.items():
            if words in text:
                self._misuse(event.scaler, misuse, user_site(), text.partition(". ")[0], raises=True)
                self._bus.tell(MayEndNow())
        scaled_since = self._loss_scale.state(event.scaler).uses > self._scaled_before.get(event.scaler, sys.maxsize)
        late = "unscale_() is being called after step()" in text
        if late and not scaled_since:
            self._misuse(event.scaler, "unscale-twice", user_site(), text.partition(". ")[0], raises=True)
            self._bus.tell(MayEndNow())
        if "has already been called since the last update" in text or (late and scaled_since):
            seen = Observation(Kind.SCALER_STEP, site=user_site(), detail=text, count=1)
            seen.attrs["update"] = "missing"
            self._ledger.put((Told.NO_UPDATE, id(event.scaler)), seen)
            self._bus.tell(MayEndNow())

    def _misuse(self, scaler: Any, misuse: str, site: Site | None, detail: str, raises: bool) -> None:
        self._ledger.once(
            (Told.MISUSE, misuse, id(scaler)),
            Observation(Kind.SCALER_CALL, site=site, detail=detail, attrs={"misuse": misuse, "raises": raises}),
        )

    # -- the scalers themselves

    def _boundary(self, event: Boundary) -> None:
        """Each scaler's dtype, whether it is needed, and whether it skips more than its search for a scale explains."""
        for scaler in self._loss_scale.used:
            self._scaler(scaler, self._loss_scale.state(scaler), self._modules.built_at.get(scaler))

    def _scaler(self, scaler: Any, state: ScalerState, site: Site | None) -> None:
        def put(what: Told, kind: Kind, dtype: str, **more: Any) -> None:
            self._ledger.put((what, id(scaler)), Observation(kind, dtype, Role.LOSS_SCALE, site, count=1, **more))

        scale = getattr(scaler, "_scale", None)
        if isinstance(scale, Tensor):
            put(Told.SCALE, Kind.HOLDS, DTYPE_NAMES[scale.dtype], bytes=4)
        if state.saw_bfloat16 and not state.saw_float16:
            put(Told.NEEDLESS, Kind.LOSS_SCALING, "bfloat16", attrs={"needed": False})
        interval = getattr(scaler, "_growth_interval", 0)
        start = getattr(scaler, "_init_scale", 1.0)
        if interval >= LONGEST_SANE_INTERVAL or not 1 <= start <= LARGEST_SANE_SCALE:
            detail = f"init_scale={start:g}, growth_interval={interval}"
            attrs = {"extreme": True, "dynamic": interval < LONGEST_SANE_INTERVAL, "scale": float(start)}
            put(Told.EXTREME, Kind.LOSS_SCALING, "float32", detail=detail, attrs=attrs)
        self._ledger.observations.pop((Told.SKIPPED, id(scaler)), None)
        skipped = state.skips.observation(self._window, site)
        if skipped is not None:
            self._ledger.put((Told.SKIPPED, id(scaler)), skipped)
