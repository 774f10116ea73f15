"""PA417: log-probabilities that were kept low, and that new ones are compared with, as a ratio of policies has it.

What is lost is read off the values themselves: how far apart neighbouring numbers of that dtype are where the old ones
lie, and how far the new ones are from them. A number is rounded by a quarter of that step on average.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import LOW
from ..operands import in_graph
from ..process.ledger import Ledger, Observation
from ..trackers.lineage import Flow
from ..trackers.samples import sample
from . import FORWARD, Registration, Watcher
from .ratios import Ratios

NATS = 1e-3
"""What a ratio may be off by: two kernels in float32 differ by as much."""
BEARABLE = 0.05
"""Of the mean difference between new and old."""
TIMES = 64


class LogProbs(Watcher):
    """`(new - old).exp()`, `beta * (log_prob - reference)`: new ones that gradients flow through, and old ones."""

    def __init__(self, ledger: Ledger, flow: Flow, ratios: Ratios) -> None:
        self._ledger, self._flow, self._ratios = ledger, flow, ratios

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("sub", "rsub"), self.compared, False

    def compared(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW or out.numel() < 2 or not isinstance(args[1], Tensor) or not in_graph(args):
            return
        new, old = args[:2] if args[0].requires_grad else (args[1], args[0])
        if old.requires_grad or old.shape != new.shape or not self._ratios.is_log_prob(new):
            return
        dtype, made = self._rounded(old)
        if dtype is None:
            return
        seen = self._flow.suspect_kind("log_prob", Kind.OP, Role.LOSS, dtype, op="rounded-log-probabilities")
        seen.site = made or seen.site
        values, apart = sample(old), sample(out)
        if seen.count <= TIMES and values is not None and apart is not None:
            step = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(values.float().abs())))
            self._ledger.defer([step.mean() / 4, apart.abs().mean()], partial(_use, seen))

    def _rounded(self, old: Tensor) -> tuple[Any, Any]:
        """The low dtype that these are in, or were in until they were widened, and the line that made them so."""
        if old.dtype in LOW:
            return old.dtype, self._flow.tensors.of(old).made_at
        dtype, made = self._flow.of(old).get("rounded", (None, None))
        return dtype, made


def _use(seen: Observation, numbers: list[float]) -> None:
    error, apart = numbers
    share = error / apart if apart > 0 else 1.0
    if error > NATS and share > BEARABLE:
        seen.evidence["log_ratio_error"] = max(seen.evidence.get("log_ratio_error", 0.0), min(share, 1.0))
        seen.evidence["log_prob_error"] = max(seen.evidence.get("log_prob_error", 0.0), error)
        seen.confirmed = True
