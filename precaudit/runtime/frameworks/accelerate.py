"""Accelerate: the `mixed_precision` that every prepared optimizer trains under, and where it was asked for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ...model.frameworks import framework
from ...model.vocabulary import Role, Site
from ..guard import Guard
from ..patching import patch
from ..sites import user_site
from ..trackers.claims import Declaration
from . import Framework, imported

PRECISIONS = framework("accelerate").dtypes("autocast")
"""Accelerate's words."""


class Accelerate(Framework):
    """The setting is shared by all Accelerators of a process; an AcceleratedOptimizer leads to it."""

    title = "Accelerate"
    order = 70
    classes = ("accelerate",)
    awaits = ("accelerate.accelerator",)

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._written: Site | None = None
        """Where the last Accelerator was made."""

    def install(self) -> Iterable[Callable[[], None]]:
        accelerators = imported("accelerate.accelerator", "Accelerator")
        return [patch(kind, "__init__", self._around_init) for kind in accelerators]

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(accelerator: Any, *args: Any, **kwargs: Any) -> None:
            self._guard("Accelerator", self._written_here)
            original(accelerator, *args, **kwargs)

        return __init__

    def _written_here(self) -> None:
        self._written = user_site()

    def meet(self, made: Any, site: Site | None) -> None:
        if hasattr(made, "accelerator_state"):
            self._optimizers.add(made)

    def declares(self) -> Iterable[Declaration]:
        for word in dict.fromkeys(str(one.accelerator_state.mixed_precision) for one in self._optimizers):
            if word in PRECISIONS:
                by = f"Accelerator(mixed_precision='{word}')"
                yield Declaration(Role.MATMUL_COMPUTE, PRECISIONS[word], by, self._written, autocast=True)
