"""PA807: a model halves itself, `self.half()` in its own methods, and an optimizer trains what it halved."""

from __future__ import annotations

import torch

from ...model.vocabulary import Kind, Role
from ..events import Bus, ModuleCast, StepBegan
from ..process.ledger import Ledger, Observation
from ..sites import site_of, user_frame
from ..trackers.optimizers import parameters
from ..trackers.tensors import Tensors
from . import Watcher


class Halved(Watcher):
    """The model decides to train in true float16, whatever the script that trains it says."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors) -> None:
        self._ledger, self._tensors = ledger, tensors
        bus.on(ModuleCast, self._module_cast)
        bus.on(StepBegan, self._step_began)

    def _module_cast(self, event: ModuleCast) -> None:
        frame = user_frame() if event.method == "half" else None
        if frame is not None and frame.f_locals.get("self", self) is event.module:
            for parameter in event.module.parameters():
                self._tensors.learn(parameter).halved_at = site_of(frame)

    def _step_began(self, event: StepBegan) -> None:
        for parameter in parameters(event.optimizer):
            site = self._tensors.of(parameter).halved_at
            if site is not None and parameter.dtype is torch.float16 and parameter.requires_grad:
                self._ledger.put(
                    (Halved, site),
                    Observation(
                        Kind.CONFIG,
                        "float16",
                        Role.MASTER_WEIGHT,
                        site,
                        detail=f"{type(event.optimizer).__name__} holds its parameters",
                        count=1,
                        attrs={"key": "half", "precision": "half-call"},
                    ),
                )
                return
