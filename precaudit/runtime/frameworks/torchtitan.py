"""torchtitan: an OptimizersContainer around optimizers of torch's own; its dtypes are those of FSDP2 and of torch."""

from __future__ import annotations

from . import Framework


class Torchtitan(Framework):
    """Met on the stack of an optimizer's step: the report names it, and a fix speaks of its own settings."""

    title = "torchtitan"
    order = 60
    classes = ("torchtitan",)
