"""skorch: a scikit-learn estimator around the user's module; its dtypes are all torch's own."""

from __future__ import annotations

from . import Framework


class Skorch(Framework):
    """Met on the stack of an optimizer's step: the report names it, and a fix speaks of its own settings."""

    title = "skorch"
    order = 60
    classes = ("skorch",)
