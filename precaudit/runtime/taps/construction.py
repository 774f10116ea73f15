"""Tells of optimizers and GradScalers that are built, with the user's line, and of the default dtype that is set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ...model.vocabulary import Site
from ..events import Bus, DefaultDtypeSet, OptimizerBuilt, ScalerBuilt
from ..guard import Guard
from ..patching import Undo, patch
from ..sites import is_user_file, site_of, user_frame, user_site
from . import Tap


class ConstructionTap(Tap):
    """Subclasses call the constructor that is patched here, wherever in theirs."""

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus, self._guard = bus, guard

    def install(self) -> Iterable[Undo]:
        yield patch(torch.optim.Optimizer, "__init__", self._around_init)
        yield patch(torch.amp.GradScaler, "__init__", self._around_init)
        yield patch(torch, "set_default_dtype", self._around_default)

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(made: Any, *args: Any, **kwargs: Any) -> None:
            original(made, *args, **kwargs)
            self._guard("construction", self._built, made)

        return __init__

    def _built(self, made: Any) -> None:
        site = _outside_of(made)
        if isinstance(made, torch.amp.GradScaler):
            self._bus.tell(ScalerBuilt(made, site))
        if isinstance(made, torch.optim.Optimizer):
            self._bus.tell(OptimizerBuilt(made, site))

    def _around_default(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_default_dtype(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self._bus.tell(DefaultDtypeSet())

        return set_default_dtype


def _outside_of(made: Any) -> Site | None:
    """The user's line that called the constructor, not the `super().__init__()` inside the user's subclass."""
    frame = user_frame()
    while frame is not None and is_user_file(frame.f_code.co_filename) and frame.f_locals.get("self") is made:
        frame = frame.f_back
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    found = user_site()
    if frame is None or found is None:
        return found
    site = site_of(frame)
    return site._replace(library=found.library if found.line == site.line else "")
