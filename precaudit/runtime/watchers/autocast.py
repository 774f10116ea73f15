"""Autocast where it should not be: around backward or the step, in float16, in another dtype than elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES
from ..events import Boundary, Bus, StepBegan
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.autocast import Autocast
from ..trackers.graph import GraphWalked
from ..trackers.optimizers import parameters
from . import Watcher


class Region(NamedTuple):
    """What the regions of one device and dtype are told under."""

    device: str
    dtype: Any
    given: bool
    """The dtype is the script's own choice; else torch's default."""


class AutocastRegions(Watcher):
    """Reads off the regions what the script declared."""

    def __init__(self, bus: Bus, ledger: Ledger, autocast: Autocast) -> None:
        self._ledger, self._autocast = ledger, autocast
        bus.on(GraphWalked, self._graph_walked)
        bus.on(StepBegan, self._step_began)
        bus.on(Boundary, self._boundary)

    def _graph_walked(self, event: GraphWalked) -> None:
        """A backward that the script calls inside of autocast."""
        if event.trains and self._is_on(event.found.leaves.values()):
            seen = Observation(Kind.BACKWARD, site=event.site, attrs={"autocast": True})
            self._ledger.once((AutocastRegions, Kind.BACKWARD), seen)

    def _step_began(self, event: StepBegan) -> None:
        """A step that the script takes inside of autocast."""
        if self._is_on(parameters(event.optimizer)):
            name = type(event.optimizer).__name__
            seen = Observation(Kind.OPTIMIZER_STEP, site=user_site(), detail=name, attrs={"autocast": True})
            self._ledger.once((AutocastRegions, Kind.OPTIMIZER_STEP, id(event.optimizer)), seen)

    def _is_on(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the script left autocast on, on a device where these are."""
        on = any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors})
        return on and self._autocast.users_own()

    def _boundary(self, event: Boundary) -> None:
        """float16 regions, and regions that fell to another dtype than the run declares elsewhere."""
        for (device, dtype), site in self._autocast.declared.items():
            if dtype is torch.float16:
                self._ledger.put(
                    Region(device, dtype, given=True),
                    Observation(Kind.AUTOCAST, "float16", Role.ACTIVATION, site, count=1, attrs={"prefer": "bfloat16"}),
                )
        for (device, dtype), site in self._autocast.bare.items():
            others = [other for on, other in self._autocast.declared if on == device and other is not dtype]
            given = [other for other in others if (device, other) not in self._autocast.bare]
            if given:
                detail = f"other regions on {device} are {DTYPE_NAMES[given[0]]}"
                self._ledger.put(
                    Region(device, dtype, given=False),
                    Observation(
                        Kind.AUTOCAST,
                        DTYPE_NAMES[dtype],
                        Role.ACTIVATION,
                        site,
                        detail=detail,
                        count=1,
                        attrs={"dtype_given": False},
                    ),
                )
