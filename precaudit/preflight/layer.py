"""One process's preflight: puts the layer in below the trace, says what of it was real, takes it out again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from . import attention, autocast, batch_norm, files, placement, processes, readings, surface, world
from .assumed import Assumed, refuse
from .devices import DEVICES
from .imports import Imports, hears_the_truth
from .late import CHANGES
from .numbers import Numberless
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
        self.fake = bool(settings.get("fake"))
        self.world = settings.get("world") or ({"size": 1, "rank": 0, "node": 1} if self.fake else {})
        self.patches = Patches()
        self.assumed = Assumed()
        # Ranks of one node share its devices: as many as a launcher has started processes.
        self.current = Current(self.world.get("node", 0) or int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))

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
            files.install(self.patches, self.current)
            processes.install(self.patches, self.assumed)
            if self.world:
                world.install(self.patches, self.assumed, self.world)
            autocast.install(self.patches)
            attention.install(self.patches, self.assumed)
            batch_norm.install(self.patches)
            self._place()
        except BaseException:
            self.remove()
            raise

    def _place(self) -> None:
        """Tensors on the device, with numbers or without, of one process or of one rank."""
        run: Any = placement.with_numbers
        if self.fake:
            run = Numberless(self.assumed)
            readings.install(self.patches, self.assumed, run.room)
        parts = [run]
        if self.world:
            parts.append(world.Alone(run))
        mode = placement.install(self.patches, self.current, self.assumed, parts[-1])
        for part in parts:
            if hasattr(part, "mode"):
                part.mode = mode

    def remove(self) -> None:
        """Puts back everything."""
        self.patches.close()

    def told(self) -> dict[str, Any]:
        """What of this run is real and what assumed, as a report's `preflight`."""
        return {
            "device": self.name,
            "device_name": self.device.name,
            "memory": self.device.memory,
            "values": "none" if self.fake else "cpu",
            "ranks": self.world.get("size", 1),
            "real": list(REAL[:2] if self.fake else REAL),
            "assumed": self.assumed.rows(),
        }
