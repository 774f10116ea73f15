"""Sums inside index kernels: index_add and its kin round at each addition, an embedding's gradient on a CPU too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Role, Site
from .. import torch_private as private
from ..dtypes import LOW
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from . import BACKWARD, BEFORE_WRITE, FORWARD, Registration, Watcher

SUMS = frozenset({"index_add", "scatter_add", "scatter_reduce", "index_put", "_index_put_impl"})
IN_PLACE = frozenset(f"{name}_" for name in SUMS)
MEASURED = 1 << 22
"""Elements of what is added from which on nothing is measured: it is added once more in float32."""
BEARABLE = 0.01
"""Of the norm of the sums. One rounding of each is 0.002 in bfloat16; a hundred additions come to 0.01."""
BEARABLE_GRADIENT = 0.1
"""Of the norm of an embedding's gradient, which differs more than that from batch to batch."""
TIMES = 4
"""How often the additions of one line are measured."""


class IndexSums(Watcher):
    """PA405 where many rows are added into few."""

    def __init__(self, ledger: Ledger, flow: Flow, entering: Entering) -> None:
        self._ledger, self._flow, self._entering = ledger, flow, entering
        self._before: tuple[int, Tensor] | None = None
        """What lay in the memory that is added to: its address, and a float32 copy."""
        self._embeddings: dict[tuple[int, int], Site | None] = {}
        """The line that looks rows up, by the shape of its table."""

    def reactions(self) -> Iterable[Registration]:
        yield BEFORE_WRITE, IN_PLACE, self.before, False
        yield FORWARD, SUMS | IN_PLACE, self.summed, True
        yield FORWARD, ("embedding",), self.looked_up, True
        yield BACKWARD, ("embedding_dense_backward",), self.embedding, True

    def before(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if args[0].dtype in LOW and self._measures(name, args, kwargs):
            self._before = private.storage_key(args[0]), args[0].detach().float()

    def summed(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        before, self._before = self._before, None
        if not self._measures(name, args, kwargs):
            return
        seen = self._flow.suspect("index", Role.REDUCTION, out.dtype, name.strip("_"), pattern="running")
        use: Callable[[Observation, float, float], object] = self._confirm
        if not torch.is_grad_enabled():
            use = self._keep
            self._entering.mark(out, seen, measured="sum_error")
        if seen.count > TIMES:
            return
        if not name.endswith("_"):
            into = args[0].detach().float()
        elif before is not None and before[0] == private.storage_key(out):
            into = before[1]
        else:
            return
        exact = _exact(name, into, args, kwargs)
        self._compare(seen, out, exact, use)

    def looked_up(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if args[0].requires_grad:
            self._embeddings.setdefault(tuple(args[0].shape), user_site())

    def embedding(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """The gradient of a table is the sum of those of its rows' every use."""
        gradient, rows = args[0], args[1]
        if gradient.numel() > MEASURED or not self._ledger.measures:
            return
        seen = self._flow.suspect("embedding", Role.REDUCTION, out.dtype, "an embedding's gradient", pattern="running")
        seen.site = self._embeddings.get(tuple(out.shape)) or seen.site
        if seen.count <= TIMES and not (len(args) > 4 and args[4]):
            flat = gradient.detach().float().reshape(-1, out.shape[1])
            kept = (rows != args[3]).reshape(-1, 1)
            exact = torch.zeros_like(out, dtype=torch.float32).index_add(0, rows.reshape(-1), flat * kept)
            self._compare(seen, out, exact, self._confirm_gradient)

    def _measures(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether this is a sum, and small enough to be added once more."""
        added = next((arg for arg in reversed(args) if isinstance(arg, Tensor)), None)
        if added is None or added.numel() > MEASURED or not self._ledger.measures:
            return False
        if "index_put" in name:
            return bool(args[3] if len(args) > 3 else kwargs.get("accumulate", False))
        return "scatter_reduce" not in name or (len(args) > 4 and args[4] in ("sum", "mean"))

    def _compare(self, seen: Observation, out: Tensor, exact: Tensor, use: Any) -> None:
        error, norm = (out.detach().float() - exact).norm(), exact.norm()
        self._ledger.defer([error, norm], lambda numbers: use(seen, numbers[0], numbers[1]))

    @staticmethod
    def _keep(seen: Observation, error: float, norm: float, bearable: float = BEARABLE) -> bool:
        """Keeps the largest error; whether it is more than bearable."""
        share = error / norm if norm > 0 else 0.0
        if not share > bearable:
            return False
        seen.evidence["sum_error"] = max(seen.evidence.get("sum_error", 0.0), share)
        return True

    def _confirm(self, seen: Observation, error: float, norm: float) -> None:
        seen.confirmed |= self._keep(seen, error, norm)

    def _confirm_gradient(self, seen: Observation, error: float, norm: float) -> None:
        seen.confirmed |= self._keep(seen, error, norm, BEARABLE_GRADIENT)


def _exact(name: str, into: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The same sum in float32."""
    wide = [arg.detach().float() if isinstance(arg, Tensor) and arg.dtype in LOW else arg for arg in args[1:]]
    if "index_put" in name:
        return torch.index_put(into, *wide[:2], accumulate=True)
    result: Tensor = getattr(torch.ops.aten, name.rstrip("_"))(into, *wide, **kwargs)
    return result
