"""What optimizers carry from step to step, by dtype: how much could not move, and an eps that is nothing in it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from ...model.vocabulary import Kind, Role, rounds_to
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..process.ledger import Ledger, Observation
from ..sites import is_user_file
from ..trackers.adapters import Adapters
from ..trackers.contents import Moments, OptimizerRead, made_at
from ..trackers.modules import Modules
from ..trackers.optimizers import nbytes
from ..trackers.tensors import Tensors
from . import Watcher
from .updates import Updates


def is_the_scripts_own(optimizer: Any) -> bool:
    """Whether the optimizer's class stands in the program's own files: it says itself what its state is."""
    code = getattr(inspect.unwrap(type(optimizer).step), "__code__", None)
    return code is not None and is_user_file(code.co_filename)


class OptimizerState(Watcher):
    """PA301, PA302 and PA305, as it is after each step."""

    def __init__(
        self, bus: Bus, ledger: Ledger, tensors: Tensors, modules: Modules, adapters: Adapters, updates: Updates
    ) -> None:
        self._ledger, self._tensors, self._modules = ledger, tensors, modules
        self._adapters, self._updates = adapters, updates
        bus.on(OptimizerRead, self._optimizer_read)

    def _optimizer_read(self, event: OptimizerRead) -> None:
        optimizer, rows = event.optimizer, dict[Any, Observation]()
        adapters = bool(event.mine) and all(self._adapters.is_adapter(p) for p in event.mine)
        for (because, dtype), group in event.moments.items():
            seen = self._moments(optimizer, dtype, group, event.mine)
            seen.attrs["adapter_only"] = adapters
            if because:
                seen.attrs["allowed_because"] = because
            elif dtype in LOW:
                self._updates.of_state(seen, optimizer, group.names, dtype)
                eps = self._eps(optimizer, seen)
                if eps is not None:
                    rows[OptimizerState, id(optimizer), "eps", dtype] = eps
            rows[OptimizerState, id(optimizer), dtype, because] = seen
        self._ledger.renew((OptimizerState, id(optimizer)), rows)

    def _moments(self, optimizer: Any, dtype: Any, held: Moments, mine: list[Tensor]) -> Observation:
        name, site = type(optimizer).__name__, self._modules.built_at.get(optimizer)
        owners = held.owners
        low = [p for p in owners.values() if private.local(p).dtype in LOW] if dtype in LOW else []
        made = made_at(self._tensors, held.tensors)
        of = f" of {len(owners)}/{len(mine)} parameters" if owners else ""
        if owners and not all(p.numel() for p in mine):  # FSDP1 leaves a rank the parameters of its shard
            of = " of each rank's share of the parameters"
        seen = Observation(
            Kind.HOLDS,
            DTYPE_NAMES[dtype],
            Role.OPTIMIZER_STATE,
            # Low state beside high parameters was made so by the optimizer itself: that line, not its construction.
            made if made is not None and dtype in LOW and owners and not low else site,
            self._modules.why_low(low[0]) if low else None,
            detail=f"{name} {', '.join(sorted(held.names)) or 'state'}{of}",
            count=len(held.tensors),
            bytes=sum(nbytes(t) for t in (*held.tensors, *held.scales)),
            attrs={"optimizer": name, "what": "moment"},
        )
        if is_the_scripts_own(optimizer):
            seen.attrs["own"] = True
        return seen

    @staticmethod
    def _eps(optimizer: Any, state: Observation) -> Observation | None:
        """An eps that is nothing in the dtype it is added in. Fused kernels add it in float32."""
        for group in optimizer.param_groups:
            eps = group.get("eps")
            if not isinstance(eps, float) or not eps or group.get("fused"):
                continue
            how = rounds_to(eps, state.dtype)
            if how in ("zero", "subnormal"):
                return Observation(
                    Kind.EPS,
                    state.dtype,
                    Role.OPTIMIZER_STATE,
                    state.site,
                    state.cause,
                    detail=f"eps={eps:g} of {type(optimizer).__name__}",
                    count=1,
                    attrs={"rounds_to": how, "value": eps},
                )
        return None
