"""pytorch-ignite: an Engine runs the user's step; its dtypes are all torch's own."""

from __future__ import annotations

from . import Framework


class Ignite(Framework):
    """Met on the stack of an optimizer's step: the report names it, and a fix speaks of its own settings."""

    title = "Ignite"
    order = 60
    classes = ("ignite",)
