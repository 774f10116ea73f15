"""PA102: parameters that an optimizer held already were cast to low precision, and it stepped on them."""

from __future__ import annotations

from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, ModuleCast, StepBegan
from ..process.ledger import Ledger, Observation
from ..trackers.optimizers import parameters
from ..trackers.steps import Steps
from ..trackers.tensors import Tensors
from . import Watcher


class LateCasts(Watcher):
    """A cast is remembered with the parameters it changed; a step on them tells."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors, steps: Steps) -> None:
        self._ledger, self._tensors, self._steps = ledger, tensors, steps
        self._lowered: dict[int, Site | None] = {}
        """`id` of a parameter that was cast while an optimizer held it -> where, until it is cast back."""
        bus.on(ModuleCast, self._module_cast)
        bus.on(StepBegan, self._step_began)

    def _module_cast(self, event: ModuleCast) -> None:
        held: set[int] | None = None
        for parameter in event.module.parameters():
            if self._lowered and parameter.dtype not in LOW and id(parameter) in self._lowered:
                # Cast back, it holds what is left of it: PA105 is told there.
                self._tensors.learn(parameter).written_at = self._lowered.pop(id(parameter))
            if parameter.dtype in LOW and event.before.get(id(parameter), parameter.dtype) is not parameter.dtype:
                if held is None:
                    held = {id(p) for optimizer in self._steps.built for p in parameters(optimizer)}
                if id(parameter) in held:
                    known = self._tensors.learn(parameter)
                    known.cast_late = known.cast
                    self._lowered[id(parameter)] = known.cast.site if known.cast else None

    def _step_began(self, event: StepBegan) -> None:
        optimizer = event.optimizer
        mine = [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]
        cast = [p for p in mine if self._tensors.of(p).cast_late is not None and p.dtype in LOW]
        cause = self._tensors.of(cast[0]).cast_late if cast else None
        if cause is not None:
            self._ledger.put(
                (LateCasts, id(optimizer)),
                Observation(
                    Kind.CAST,
                    DTYPE_NAMES[cast[0].dtype],
                    Role.MASTER_WEIGHT,
                    cause.site,
                    detail=f"{len(cast)}/{len(mine)} parameters of {type(optimizer).__name__}, then it stepped",
                    count=len(cast),
                    attrs={"after_optimizer": True},
                ),
            )
