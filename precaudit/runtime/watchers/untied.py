"""PA812: a parameter that modules shared was replaced in one of them, and that one is trained by itself."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES
from ..events import Bus, ParameterRegistered, StepBegan, TraceEnded
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.holders import Holders, Places, held_by
from ..trackers.modules import Modules
from . import Watcher


class Replaced(NamedTuple):
    """A parameter that was replaced in one of the modules that shared it."""

    module: weakref.ref[Any]
    name: str
    others: Places
    site: Site | None


class Untied(Watcher):
    """The next step shows whether what was replaced was tied again."""

    def __init__(self, bus: Bus, ledger: Ledger, holders: Holders, modules: Modules) -> None:
        self._ledger, self._holders, self._modules = ledger, holders, modules
        self._replaced: dict[tuple[int, str], Replaced] = {}
        bus.on(ParameterRegistered, self._parameter_registered)
        bus.on(StepBegan, self._step_began)
        bus.on(TraceEnded, lambda event: self._replaced.clear())

    def _parameter_registered(self, event: ParameterRegistered) -> None:
        module, name, parameter = event
        old = module._parameters.get(name)
        if old is None or old is parameter or is_lazy(old) or is_lazy(parameter):
            return
        others = [(weakref.ref(other), at) for other, at in self._holders.of(old) if other is not module]
        if others and old.shape == parameter.shape:
            self._replaced[id(module), name] = Replaced(weakref.ref(module), name, others, user_site())

    def _step_began(self, event: StepBegan) -> None:
        """What was tied, and is now two tensors that modules hold, of which this one is trained."""
        replaced, self._replaced = self._replaced, {}
        for ref, name, others, site in replaced.values():
            module = ref()
            mine = held_by(module, name) if module is not None else None
            theirs = [held_by(other, at) for other, at in ((r(), at) for r, at in others) if other is not None]
            if isinstance(mine, Tensor) and mine.requires_grad and any(t is not None and t is not mine for t in theirs):
                seen = Observation(
                    Kind.CAST,
                    DTYPE_NAMES.get(mine.dtype, str(mine.dtype)),
                    Role.MASTER_WEIGHT,
                    site,
                    module=self._modules.module_name(module),
                    detail=f"{name} was shared with another module",
                    attrs={"unties": True},
                )
                self._ledger.once((Untied, id(module), name), seen)
