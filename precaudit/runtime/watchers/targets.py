"""PA413: targets that were rounded before the loss compares anything with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...model.vocabulary import Kind, Role
from ..dtypes import LOW
from ..process.ledger import Ledger, Observation
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from ..trackers.samples import sample
from . import FORWARD, Registration, Watcher

BEARABLE = 0.05
"""Of the spread of the values. Numbers around 0 are off by 0.002 of it in bfloat16, 1000 plus or minus 1 by 1.2."""
TIMES = 4


class Targets(Watcher):
    """Casts of what needs no gradient, and how much of the difference between their values is left."""

    def __init__(self, ledger: Ledger, flow: Flow, entering: Entering) -> None:
        self._ledger, self._flow, self._entering = ledger, flow, entering

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_to_copy",), self.cast, True

    def cast(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        if source.requires_grad or source.dtype in LOW or source.dtype is torch.bool or source.numel() < 2:
            return
        if isinstance(source, torch.nn.Parameter) or self._flow.tensors.is_parameter(source):
            return
        seen = self._flow.suspect_kind(
            "target", Kind.OP, Role.LOSS, out.dtype, f"they were {source.dtype}", op="low-precision-target"
        )
        self._entering.mark(out, seen, measured="target_error", target=True)
        exact, rounded = sample(source), sample(out)
        if seen.count <= TIMES and exact is not None and rounded is not None:
            exact, rounded = exact.double(), rounded.double()
            numbers = [(rounded - exact).square().mean(), exact.var()]
            self._ledger.defer(numbers, lambda values: self._use(seen, *values))

    @staticmethod
    def _use(seen: Observation, error2: float, spread2: float) -> None:
        share = (error2 / spread2) ** 0.5 if spread2 > 0 else 0.0
        if BEARABLE < share < float("inf"):
            seen.evidence["target_error"] = max(seen.evidence.get("target_error", 0.0), share)
