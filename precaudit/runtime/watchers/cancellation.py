"""PA415: what is left of two large values that nearly cancel, where their rounding is as large as it.

Known limitations: only what is written as E[x^2] - E[x]^2, in any dtype, and as x^2 + y^2 - 2xy with a low-precision
product; a formula that goes through an in-place operation or another function is not recognised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..dtypes import LOW
from ..events import BackwardBegan, Bus
from ..operands import in_graph
from ..process.ledger import Ledger, Observation
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from ..trackers.samples import sample
from ..trackers.tensors import Record, Tensors
from . import FORWARD, Registration, Watcher

MATMULS = ("mm", "bmm", "addmm", "baddbmm", "linear")
BEARABLE = 0.05
"""The rounding of what is subtracted, as a share of what is left."""
TIMES = 4


class Term(NamedTuple):
    """What part of a formula a value is."""

    what: str
    """ "square", "mean", "mean of squares", "square of mean", "product"."""
    of: Record | None
    dtype: Any
    """In which it was rounded."""


class Cancellation(Watcher):
    """Follows the parts of two formulas from one backward to the next."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors, flow: Flow, entering: Entering) -> None:
        self._ledger, self._tensors, self._flow, self._entering = ledger, tensors, flow, entering
        self._terms: dict[Record, Term] = {}
        bus.on(BackwardBegan, lambda event: self._terms.clear())

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("pow", "square", "mul", "div", "neg"), self.product, False
        yield FORWARD, ("mean", "sum"), self.reduced, False
        yield FORWARD, MATMULS, self.matmul, True
        yield FORWARD, ("add", "sub", "rsub"), self.sum, False
        yield FORWARD, ("_to_copy",), self.passes, False

    def _of(self, tensor: Any) -> Term | None:
        return self._terms.get(self._tensors.of(tensor)) if self._terms and isinstance(tensor, Tensor) else None

    def _is(self, out: Tensor, term: Term) -> None:
        self._terms[self._tensors.learn(out)] = term

    # -- the parts

    def product(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A square, or a part times a number."""
        first, second = args[0], args[1] if len(args) > 1 else None
        if (
            name == "square"
            or (name == "pow" and not isinstance(second, Tensor) and second == 2)
            or (name == "mul" and _same(first, second))
        ):
            known = self._of(first)
            if known is not None and known.what == "mean":
                self._is(out, Term("square of mean", known.of, out.dtype))
            elif out.numel() > 1:
                self._is(out, Term("square", self._tensors.learn(first), out.dtype))
        elif name in ("mul", "div", "neg") and not (isinstance(second, Tensor) and second.ndim):
            self.passes(name, args, kwargs, out)

    def reduced(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0]
        known = self._of(given)
        if known is not None and known.what == "square":
            self._is(out, Term("mean of squares", known.of, out.dtype))
        elif known is None and given.numel() > out.numel():
            self._is(out, Term("mean", self._tensors.learn(given), out.dtype))

    def matmul(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self._is(out, Term("product", None, out.dtype))

    def passes(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        known = self._of(args[0])
        if known is not None:
            lower = out.dtype in LOW and known.dtype not in LOW
            self._is(out, known._replace(dtype=out.dtype) if lower else known)

    # -- the formulas

    def sum(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        first, second = (args[1], args[0]) if name == "rsub" else (args[0], args[1])
        one, other = self._of(first), self._of(second)
        if one is None or other is None:
            return
        kinds = {one.what, other.what}
        if kinds == {"mean of squares", "square of mean"} and one.of is other.of and name == "sub":
            self._cancels("variance", one, first, out, args)
        elif kinds == {"mean of squares", "product"}:
            product, large = (one, second) if one.what == "product" else (other, first)
            self._cancels("distance", product, large, out, args)
        elif kinds == {"mean of squares"} and name == "add":  # x^2 + y^2, of which 2xy is taken next
            self._is(out, one)

    def _cancels(self, of: str, rounded: Term, large: Tensor, out: Tensor, args: Any) -> None:
        """How large the rounding of what cancels is beside what is left, on a sample of both."""
        if not self._ledger.measures or not rounded.dtype.is_floating_point:
            return
        detail = "the mean of squares less the square of the mean" if of == "variance" else "x^2 + y^2 - 2xy"
        seen = self._flow.suspect_kind(
            of, Kind.OP, Role.ACTIVATION, rounded.dtype, detail, op="cancellation", cancels=of
        )
        trains = in_graph(args)
        if not trains:  # a target, a weight of the loss: it matters where a loss takes it in
            self._entering.mark(out, seen, measured="cancelled")
        gone, left = sample(large.expand(out.shape)), sample(out)
        if seen.count > TIMES or gone is None or left is None:
            return
        step = torch.finfo(rounded.dtype).eps / 2
        numbers = [gone.double().abs().sum() * step, left.double().abs().sum()]
        self._ledger.defer(numbers, lambda values: self._use(seen, trains, *values))

    @staticmethod
    def _use(seen: Observation, trains: bool, rounding: float, left: float) -> None:
        share = rounding / left if left > 0 else float(rounding > 0)
        if share > BEARABLE:
            seen.evidence["cancelled"] = max(seen.evidence.get("cancelled", 0.0), min(share, 1e6))
            seen.confirmed |= trains


def _same(first: Any, second: Any) -> bool:
    """Whether these are one tensor, or two views of all of it."""
    if first is second:
        return True
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or first.shape != second.shape:
        return False
    return private.storage_key(first) == private.storage_key(second) != 0
