"""The loss at the root of a backward: its dtype before any scaling, and who scales it where gradients are float16."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, StepBegan
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.claims import Account
from ..trackers.graph import GraphWalked, Walk, loss_factor
from ..trackers.lineage import Flow
from ..trackers.loss_scale import Float16Gradients, LossScale
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import Watcher


class Losses(Watcher):
    """PA401's loss, and PA201."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        account: Account,
        loss_scale: LossScale,
    ) -> None:
        self._loss_scale = loss_scale
        self._tensors = tensors
        self._ledger = ledger
        self._account = account
        self._window = window
        self.flow = flow
        self._hand_scaling: Observation | None = None
        bus.on(GraphWalked, self._graph_walked)
        bus.on(StepBegan, lambda event: self.before_step())

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            scaler = self._loss_scale.of_backward
            self.saw(event.roots, event.found, scaler)
            self.saw_scaling(event.roots, event.found, scaler, event.gradient)

    def saw(self, roots: list[Tensor], found: Walk, scaler: Any) -> None:
        """The loss's dtype before any scaling; a low-precision value on its way counts, at the line that made it."""
        for root in roots:
            self._tensors.learn(root).is_loss = True
        low = sorted((number, dtype) for dtype, number in found.scalars if dtype in LOW and number not in found.outputs)
        located = [(n, d) for n, d in low if n in self.flow.scalar_sites and self.flow.scalar_sites[n].line]
        for root in roots:
            dtype, site = root.dtype, user_site()
            if scaler is not None and self._loss_scale.state(scaler).losses:
                dtype = self._loss_scale.state(scaler).losses[-1]
            if located:
                dtype, site = located[0][1], self.flow.scalar_sites[located[0][0]]
            elif low:
                dtype = low[0][1]
            detail = f"{root.numel()} elements" if root.numel() != 1 else ""
            name = DTYPE_NAMES.get(dtype, str(dtype))
            seen = self._ledger.once((Losses, dtype), Observation(Kind.HOLDS, name, Role.LOSS, site, detail=detail))
            if located:
                seen.site = site
            seen.attrs["device"] = root.device.type
            number = located[0][0] if located else low[0][0] if low else None
            if number in self.flow.cuda_scalars and self.flow.runs_anywhere(seen.site):
                seen.attrs["only_on_cpu"] = True
            else:
                seen.attrs.pop("only_on_cpu", None)
        self.flow.scalar_sites.clear()
        self.flow.cuda_scalars.clear()

    def saw_scaling(self, roots: list[Tensor], found: Walk, scaler: Any, gradient: Any) -> None:
        """float16 gradients need loss scaling; hand-written scaling shows as a factor now and a division later."""
        tally = found.activations.get(torch.float16)
        if tally is None or not roots:
            return
        if scaler is not None or self._account.scales_loss():
            self._ledger.once(
                Float16Gradients(scaled=True),
                Observation(
                    Kind.HOLDS, "float16", Role.GRADIENT, user_site(), attrs={"loss_scaling": "scaled"}, confirmed=False
                ),
            )
            return
        told = loss_factor(roots[0], gradient)
        if told is None:
            return
        factor, divisors = told
        seen = self._ledger.once(
            Float16Gradients(scaled=False),
            Observation(
                Kind.HOLDS,
                "float16",
                Role.GRADIENT,
                user_site(),
                detail=f"{tally[0]} float16 values lie between the loss and the parameters",
                attrs={"loss_scaling": "none"},
                confirmed=False,
            ),
        )
        if divisors:
            self._ledger.defer(divisors, lambda numbers: self._divided(seen, factor, numbers))
        elif factor <= 1:
            seen.confirmed = self._loss_scale.missing = True
        else:
            self._hand_scaling = seen

    def _divided(self, seen: Observation, factor: float, numbers: list[float]) -> None:
        """What the loss was divided by has been read; a factor above 1 is left open: the step is over by now."""
        if factor <= abs(math.prod(numbers)):
            seen.confirmed = self._loss_scale.missing = True

    def before_step(self) -> None:
        """A factor that nobody divided the gradients by was no loss scale; a scaler that steps divides by its own."""
        if self._hand_scaling is not None:
            if self._window.tracing and not self._loss_scale.rescaled and not self._loss_scale.steps:
                self._hand_scaling.confirmed = self._loss_scale.missing = True
            self._hand_scaling = None
