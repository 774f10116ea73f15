"""One process's preflight: puts the layer in below the trace, says what of it was real, takes it out again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from . import attention, autocast, files, placement, processes, surface
from .assumed import Assumed, refuse
from .devices import DEVICES
from .imports import Imports, hears_the_truth
from .late import CHANGES
from .patches import Patches
from .placement import Current

REAL = (
    "dtypes of every tensor, CUDA's autocast included",
    "shapes, bytes, the model, the data, the optimizer and the lines of the program",
    "values, as a CPU computes them",
)
"""What of a run with values is real."""


def start(settings: Mapping[str, Any]) -> Layer:
    """Begins a preflight of this process. Called once, when torch has been imported and before the trace starts."""
    layer = Layer(settings)
    layer.install()
    return layer


class Layer:
    """What a preflight consists of. `remove` leaves torch as it was found."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = settings.get("device", "h100")
        self.device = DEVICES[self.name]
        self.patches = Patches()
        self.assumed = Assumed()
        # Ranks of one node share its devices: as many as a launcher has started processes.
        self.current = Current(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))

    def install(self) -> None:
        """Puts all of it in; what cannot be put in is an error that takes the rest out."""
        try:
            if not hasattr(torch.library, "get_kernel"):
                raise refuse(
                    f"torch {torch.__version__} does not give out its kernels", "install torch 2.9 or newer there"
                )
            changes = {name: partial(change, self.patches, self.current) for name, change in CHANGES.items()}
            Imports(changes).install(self.patches)
            surface.install(self.patches, self.device, self.current, self.assumed, hears_the_truth)
            files.install(self.patches)
            processes.install(self.patches, self.assumed)
            autocast.install(self.patches)
            attention.install(self.patches, self.assumed)
            placement.install(self.patches, self.current, self.assumed)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Puts back everything."""
        self.patches.close()

    def told(self) -> dict[str, Any]:
        """What of this run is real and what assumed, as a report's `preflight`."""
        return {
            "device": self.name,
            "device_name": self.device.name,
            "memory": self.device.memory,
            "values": "cpu",
            "real": list(REAL),
            "assumed": self.assumed.rows(),
        }
