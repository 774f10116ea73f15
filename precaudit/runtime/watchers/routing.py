"""PA414: the logits of a router, computed by a low-precision matmul, from which the largest few are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..operands import in_graph
from ..process.ledger import Ledger, Observation
from ..trackers.lineage import Flow
from ..trackers.tensors import Place, Tensors
from . import FORWARD, Registration, Watcher

MATMULS = frozenset({"mm", "addmm", "linear"})
MONOTONE = frozenset({"_to_copy", "_softmax", "sigmoid", "_log_softmax"})
"""What leaves the order of the logits as it is."""
WIDEST = 512
"""Outputs of a layer up to which it may be a router."""
ROWS = 4096
FEWEST_ROWS = 64
TIMES = 4


class Logits(NamedTuple):
    """How a low-precision result was computed, by operands that can be read again while they are there."""

    given: Place
    weight: Place
    transposed: bool
    bias: Place | None
    dtype: Any


class Routing(Watcher):
    """What would have been chosen if the same layer had been computed in float32."""

    def __init__(self, ledger: Ledger, tensors: Tensors, flow: Flow) -> None:
        self._ledger, self._tensors, self._flow = ledger, tensors, flow

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_to_copy",), self.lowered, True
        yield FORWARD, MATMULS, self.matmul, True
        yield FORWARD, MONOTONE, self.passes, False
        yield FORWARD, ("topk", "sort", "argmax"), self.chosen, False

    def lowered(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Remembers what the operands of a matmul were before autocast rounded them."""
        if args[0].dtype is torch.float32:
            self._flow.mark(out, wide=Place(self._tensors.learn(args[0]), args[0]))

    def matmul(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if out.shape[-1] > WIDEST or not in_graph(args) or not self._ledger.measures:
            return
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        bias = tensors.pop(0) if name == "addmm" else tensors.pop() if len(tensors) > 2 else None
        given, weight = tensors
        turned = name != "linear" and weight.stride(0) == 1
        weight = weight.t() if turned else weight
        by = Logits(
            self._place(given),
            self._place(weight),
            turned or name == "linear",
            self._place(bias) if bias is not None else None,
            out.dtype,
        )
        self._flow.mark(out, logits=by)

    def _place(self, tensor: Tensor) -> Place:
        wide = self._flow.of(tensor).get("wide")
        if wide is not None and wide.shape.numel() == tensor.numel() and wide.shape[-1] == tensor.shape[-1]:
            found: Place = wide
            return found
        return Place(self._tensors.learn(tensor), tensor)

    def passes(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        by = self._flow.of(args[0]).get("logits")
        if by is not None:
            self._flow.mark(out, logits=by)

    def chosen(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A few of the last dimension are taken, by a choice that the model is trained with."""
        values = args[0]
        by: Logits | None = self._flow.of(values).get("logits")
        if by is None or not torch.is_grad_enabled() or not values.requires_grad or values.ndim < 2:
            return
        dim = args[2] if name == "topk" and len(args) > 2 else args[1] if name != "topk" and len(args) > 1 else -1
        count = args[1] if name == "topk" else 1
        if dim not in (-1, values.ndim - 1) or count >= values.shape[-1]:
            return
        seen = self._flow.suspect_kind(
            "router",
            Kind.OP,
            Role.ACTIVATION,
            by.dtype,
            f"{name} of {values.shape[-1]}",
            op="low-precision-router",
        )
        both = self._logits(by, values) if seen.count <= TIMES else None
        if both is not None:
            rows = torch.tensor(float(len(both[0])))
            self._ledger.defer([_changed(*both, count).cpu(), rows], lambda numbers: self._use(seen, *numbers))

    @staticmethod
    def _logits(by: Logits, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """The logits as they were computed, and in float32; None where their operands are gone, or these are others."""
        given, weight = by.given.tensor(), by.weight.tensor()
        bias = by.bias.tensor() if by.bias is not None else None
        if given is None or weight is None or (by.bias is not None and bias is None):
            return None
        if weight.shape[0 if by.transposed else 1] != values.shape[-1]:
            return None
        weight = weight.t() if by.transposed else weight
        given = given.reshape(-1, given.shape[-1])[:ROWS]
        low, exact = given.to(by.dtype) @ weight.to(by.dtype), given.float() @ weight.float()
        if bias is not None:
            low, exact = low + bias.to(by.dtype), exact + bias.float()
        return low.float(), exact

    @staticmethod
    def _use(seen: Observation, changed: float, rows: float) -> None:
        if rows >= FEWEST_ROWS and changed > 0:
            seen.evidence["choices_changed"] = max(seen.evidence.get("choices_changed", 0.0), changed)
            seen.confirmed = True


def _changed(low: Tensor, exact: Tensor, count: int) -> Tensor:
    """The share of rows in which the last that is chosen and the first that is not change places.

    They do where rounding moves them by more than they are apart, and in one of two directions. Any row's error may
    meet any row's distance: so 100 rows tell a share of 1 %.
    """
    values, places = exact.topk(count + 1, dim=-1)
    apart = values[:, -2] - values[:, -1]
    moved = (low - exact).gather(1, places[:, -2:])
    sizes = (moved[:, 0] - moved[:, 1]).abs().sort().values
    larger = len(sizes) - torch.searchsorted(sizes, apart.contiguous(), right=True)
    return larger.float().mean() / (2 * len(sizes))
