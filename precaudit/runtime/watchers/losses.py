"""The loss at the root of a backward: its dtype before any scaling, and who scales it where gradients are float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..events import StepBegan
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.graph import GraphWalked, Walk, loss_factor
from ..trackers.lineage import DTYPE_NAMES, LOW
from . import Watcher

if TYPE_CHECKING:
    from ..session import Session


class Losses(Watcher):
    """PA401's loss, and PA201."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.flow = session.flow
        self.unscaled_float16 = False
        """float16 gradients came from a loss that nothing scaled."""
        self._hand_scaling: Observation | None = None
        session.bus.on(GraphWalked, self._graph_walked)
        session.bus.on(StepBegan, lambda event: self.before_step())

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            scaler = self.session.scaling.of_backward
            self.saw(event.roots, event.found, scaler)
            self.saw_scaling(event.roots, event.found, scaler, event.gradient)

    def saw(self, roots: list[Tensor], found: Walk, scaler: Any) -> None:
        """The loss's dtype before any scaling; a low-precision value on its way counts, at the line that made it."""
        for root in roots:
            self.session.tensors.learn(root).is_loss = True
        low = sorted((number, dtype) for dtype, number in found.scalars if dtype in LOW and number not in found.outputs)
        located = [(n, d) for n, d in low if n in self.flow.scalar_sites and self.flow.scalar_sites[n].line]
        for root in roots:
            dtype, site = root.dtype, user_site()
            if scaler is not None and self.session.scaling.state(scaler).losses:
                dtype = self.session.scaling.state(scaler).losses[-1]
            if located:
                dtype, site = located[0][1], self.flow.scalar_sites[located[0][0]]
            elif low:
                dtype = low[0][1]
            detail = f"{root.numel()} elements" if root.numel() != 1 else ""
            name = DTYPE_NAMES.get(dtype, str(dtype))
            seen = self.session.once(("loss", dtype), Observation(Kind.HOLDS, name, Role.LOSS, site, detail=detail))
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
        if scaler is not None or self.session.adapters.scales_loss():
            self.session.once(
                ("gradient", "float16", "scaled"),
                Observation(
                    Kind.HOLDS, "float16", Role.GRADIENT, user_site(), attrs={"loss_scaling": "scaled"}, confirmed=False
                ),
            )
            return
        factor = loss_factor(roots[0], gradient)
        if factor is None:
            return
        seen = self.session.once(
            ("gradient", "float16", "unscaled"),
            Observation(
                Kind.HOLDS,
                "float16",
                Role.GRADIENT,
                user_site(),
                detail=f"{tally[0]} values between the loss and the parameters",
                attrs={"loss_scaling": "none"},
                confirmed=False,
            ),
        )
        if factor <= 1:
            seen.confirmed = self.unscaled_float16 = True
        else:
            self._hand_scaling = seen

    def before_step(self) -> None:
        """A factor that nobody divided the gradients by was no loss scale."""
        if self._hand_scaling is not None:
            if self.session.window.tracing and not self.session.gradients.rescaled:
                self._hand_scaling.confirmed = self.unscaled_float16 = True
            self._hand_scaling = None
