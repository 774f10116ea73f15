"""Remembers where low-precision tensors without gradient were made, so that an accumulator's report names that line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..events import Bus, OpRefused, OptimizerBuilt, RestBegan, RestEnded, WindowOpened
from ..guard import Guard
from ..modes import Modes, OurMode
from ..sites import user_site
from ..trackers.origins import Origins
from ..trackers.passes import Passes
from ..trackers.tensors import Tensors
from ..trackers.window import Window

MAKERS = frozenset(
    "zeros zeros_like ones ones_like full full_like empty empty_like empty_strided new_zeros new_empty new_full "
    "scalar_tensor lift_fresh clone _to_copy".split()
)


class Births:
    """Learns the user's line that made a tensor."""

    def __init__(
        self, bus: Bus, guard: Guard, window: Window, tensors: Tensors, modes: Modes, origins: Origins, passes: Passes
    ) -> None:
        self.guard = guard
        self.passes = passes
        self.unmounted: Callable[[], Any] = lambda: None
        """Gives the mode that sees ops as in a traced step."""
        self._window = window
        self._modes = modes
        self.bus = bus
        self.tensors = tensors
        self.origins = origins
        self._mode: BirthMode | None = None
        bus.on(OptimizerBuilt, self._optimizer_built)
        bus.on(RestBegan, lambda event: self.stop())
        bus.on(RestEnded, lambda event: self.start())
        bus.on(WindowOpened, lambda event: self.stop())

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        """From the first optimizer on, until every op is seen."""
        if not self._window.attempts:
            self.start()

    def start(self) -> None:
        """Sees what is made, unless every op is seen."""
        if self._mode is None and not self._window.tracing:
            self._mode = BirthMode(self)
            self._modes.put_in(self._mode)

    def stop(self) -> None:
        """Sees no more."""
        if self._mode is not None:
            self._modes.take_out(self._mode)
            self._mode = None

    def made(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name in ("clone", "_to_copy") and self.tensors.of(args[0]).parameter and not torch.is_grad_enabled():
            self.tensors.learn(out).copies_parameter = True
        if isinstance(out, Tensor) and out.dtype in LOW and self.tensors.of(out).made_at is None:
            if name in ("clone", "_to_copy") and torch.is_grad_enabled() and args[0].requires_grad:
                return
            site = user_site()
            if site is not None:
                self.tensors.learn(out).made_at = site


class BirthMode(OurMode):
    """On from the first optimizer's construction until the window opens, when state, averages and sums are made."""

    def __init__(self, births: Births) -> None:
        super().__init__()
        self.births = births
        self.passes = births.passes
        self.makers: dict[Any, str] = {}
        self.foreign: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private.PLAIN and not private.is_plain(kind):
                return func(*args, **(kwargs or {})) if private.simulates(kind) else NotImplemented
        name = self.makers.get(func)
        if name is None:
            schema = getattr(func, "_schema", None)
            name = self.makers[func] = schema.name.partition("::")[2] if schema is not None else ""
            if private.is_foreign(func):
                self.foreign.add(func)
        elif self.passes.follows and self.passes.sees(args) and func not in self.foreign:
            return self.births.unmounted().__torch_dispatch__(func, types, args, kwargs)
        origins = self.births.origins
        operands = origins.before(func, args, kwargs or {}) if origins.following else None
        try:
            if self.foreign and func in self.foreign:
                out = private.run_foreign(func, args, kwargs or {})
            else:
                out = func(*args, **kwargs) if kwargs else func(*args)
        except RuntimeError as error:
            self.births.bus.tell(OpRefused(str(func), args, error))
            raise
        if operands is not None:
            origins.after(func, operands, args, out)
        if name in MAKERS:
            try:
                self.births.made(name, args, kwargs, out)
            except Exception as error:
                self.births.guard.fault(f"what {func} makes", error)
        return out
