"""PA104: the default dtype was low when an optimizer was built."""

from __future__ import annotations

import torch

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, DefaultDtypeSet, OptimizerBuilt
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from . import Watcher


class DefaultDtype(Watcher):
    """Lowered while a model is built and put back before the optimizer, it is nobody's mistake."""

    def __init__(self, bus: Bus, ledger: Ledger) -> None:
        self._ledger = ledger
        self._set_at: Site | None = None
        bus.on(DefaultDtypeSet, self._default_set)
        bus.on(OptimizerBuilt, self._optimizer_built)

    def _default_set(self, event: DefaultDtypeSet) -> None:
        self._set_at = user_site()

    def _optimizer_built(self, event: OptimizerBuilt) -> None:
        dtype = torch.get_default_dtype()
        if dtype in LOW:
            seen = Observation(
                Kind.DEFAULT_DTYPE,
                DTYPE_NAMES[dtype],
                Role.MASTER_WEIGHT,
                self._set_at or event.site,
                detail="the optimizer was built under it",
            )
            self._ledger.once((DefaultDtype, dtype), seen)
