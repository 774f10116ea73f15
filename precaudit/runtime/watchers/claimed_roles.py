"""The roles of what a framework keeps beside the optimizer, by its own account."""

from __future__ import annotations

from ...model.vocabulary import Kind
from .. import torch_private as private
from ..events import Bus
from ..process.ledger import Ledger, Observation
from ..trackers.claims import Claimed
from ..trackers.optimizers import nbytes
from ..trackers.tensors import Tensors
from . import Watcher


class ClaimedRoles(Watcher):
    """The newest account stands for all before it."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors) -> None:
        self._ledger, self._tensors = ledger, tensors
        bus.on(Claimed, self._claimed)

    def _claimed(self, event: Claimed) -> None:
        """Role rows by a framework's own account; what the optimizer itself holds is counted with the optimizer."""
        rows = {}
        for (framework, role, dtype), claims in event.held.items():
            rest = [claim for claim in claims if not self._tensors.of(private.local(claim.tensor)).by_optimizer]
            if rest:
                names = dict.fromkeys(claim.detail for claim in rest if claim.detail)
                rows[ClaimedRoles, framework, role, dtype] = Observation(
                    Kind.HOLDS,
                    dtype,
                    role,
                    detail=f"{framework} {', '.join(names)}".strip(),
                    count=len(rest),
                    bytes=sum(nbytes(claim.tensor) for claim in rest),
                )
        self._ledger.renew(ClaimedRoles, rows)
