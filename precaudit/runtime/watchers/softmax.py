"""Probabilities: softmax and log_softmax in low precision, what they feed, and what is sampled from them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..operands import in_graph
from ..process.ledger import Ledger, Observation
from ..sites import is_user_file
from ..trackers.autocast import Autocast
from ..trackers.entering import Entering
from ..trackers.graph import GraphRecomputed, GraphWalked
from ..trackers.lineage import Flow
from ..trackers.samples import limit, sample
from . import BACKWARD, FORWARD, Registration, Watcher

ROWS = 64
"""Rows whose loss is compared with float32 where the tensor is long."""


def _cross_entropy() -> FrameType | None:
    """The frame of torch's cross_entropy, where the user's line called that or its module, and that the op."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_code.co_name == "cross_entropy":
            return frame
        frame = frame.f_back
    return None


def _loss_error(scores: Tensor, out: Tensor, target: Any) -> Tensor | None:
    """How far the mean of what cross_entropy takes is from float32; of a sample, what exceeds its own noise."""
    if (
        not isinstance(target, Tensor)
        or scores.ndim != 2
        or target.shape != scores.shape[:1]
        or target.is_floating_point()
    ):
        return None
    step = max(1, -(-len(scores) // max(ROWS, limit() // max(1, scores.shape[1]))))
    rows, classes = scores[::step], target[::step, None]
    seen = (classes >= 0) & (classes < scores.shape[1])
    place = torch.where(seen, classes, 0)
    low = out.detach()[::step].gather(1, place).double()
    error = (low - torch.log_softmax(rows.float(), -1).gather(1, place)) * seen
    count = seen.sum().clamp(min=1)
    mean = error.sum() / count
    if step == 1:
        return mean.abs()
    spread = ((error - mean).square() * seen).sum().div(count).sqrt()
    return (mean.abs() - 3 * spread / count.sqrt()).clamp(min=0)


class Softmax(Watcher):
    """PA404, PA412 and PA705."""

    def __init__(self, bus: Bus, ledger: Ledger, flow: Flow, autocast: Autocast, entering: Entering) -> None:
        self._autocast = autocast
        self._entering = entering
        self.flow = flow
        self.ledger = ledger
        self._log_softmaxes: list[Observation] = []
        """Low ones, until a gradient comes back through one of them."""
        self._logsumexps: list[Observation] = []
        """Low ones, until a backward goes through one of them."""
        bus.on(GraphWalked, self._walked)
        bus.on(GraphRecomputed, self._walked)

    def _walked(self, event: GraphWalked | GraphRecomputed) -> None:
        """A low logsumexp is in the graph of a loss."""
        if event.found.low_logsumexp:
            self._reach_loss(self._logsumexps)

    def _reach_loss(self, waiting: list[Observation]) -> None:
        """Confirms what waited for it: it is computed on the way to a loss."""
        while waiting:
            self.flow.confirm(waiting.pop(), feeds="loss")

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_log_softmax",), self.log_softmax, True
        yield BACKWARD, ("_log_softmax_backward_data",), self.log_softmax_backward, True
        yield FORWARD, ("logsumexp",), self.logsumexp, True
        yield FORWARD, ("_softmax",), self.softmax, True
        yield FORWARD, ("topk", "sort", "multinomial", "log"), self.consumed, False
        yield FORWARD, ("rand", "rand_like", "uniform_", "uniform"), self.drawn, True
        yield FORWARD, ("binary_cross_entropy",), self.binary_cross_entropy, False

    def log_softmax(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        seen = self.flow.suspect("log_softmax", Role.SOFTMAX, out.dtype, "log_softmax")
        if not in_graph(args):
            self._entering.mark(out, seen)
        elif not seen.confirmed:
            self._log_softmaxes.append(seen)
        scores, dim = args[0].detach(), args[1]
        around = _cross_entropy() if seen.count <= 4 else None
        if around is not None:
            seen.attrs["by"] = "cross_entropy"
            if around.f_locals.get("reduction") == "none":
                seen.attrs["single"] = True
            off = _loss_error(scores, out, around.f_locals.get("target")) if limit() and scores.numel() else None
            if off is not None:
                self.ledger.defer([off, torch.ones_like(off)], self.flow.share(seen, "loss_error"))
        if seen.count > 4 or not limit() or not scores.numel() or dim not in (-1, scores.ndim - 1):
            return
        width = scores.shape[-1]
        rows = scores.reshape(-1, width)[: max(1, limit() // max(1, width))]
        kept = out.detach().reshape(-1, width)[: rows.shape[0]].float()
        error = (kept - torch.log_softmax(rows.float(), -1)).abs().mean()
        self.ledger.defer([error, torch.ones_like(error)], self.flow.share(seen, "log_prob_error"))

    def logsumexp(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Confirmed by the next backward whose graph it is in."""
        if in_graph(args):
            seen = self.flow.suspect("logsumexp", Role.SOFTMAX, out.dtype, "logsumexp")
            if not seen.confirmed:
                self._logsumexps.append(seen)

    def log_softmax_backward(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A gradient came back through a low log_softmax, so it reached the loss."""
        self._reach_loss(self._log_softmaxes)

    def softmax(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """One that needs no gradient, a teacher's, may enter the loss all the same, if no matmul comes between."""
        seen = self.flow.suspect("softmax", Role.SOFTMAX, out.dtype, "softmax")
        if in_graph(args):
            self._entering.made_by_node(seen)
            self.flow.mark(out, softmax=seen)
        else:
            self._entering.mark(out, seen)

    def consumed(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """topk, sort, multinomial and log make a softmax's rounding matter; a matmul does not."""
        given = args[0]
        if given.dtype not in LOW:
            return
        marks = self.flow.of(given)
        if "softmax" in marks:
            self.flow.confirm(marks["softmax"], feeds="topk" if name == "sort" else name)
        if "uniform" in marks and name == "log":
            seen = self.flow.suspect_kind(
                "sampling", Kind.OP, Role.ACTIVATION, given.dtype, "log of a uniform draw", op="low-precision-sampling"
            )
            seen.confirmed = True
        elif name == "multinomial" and "softmax" not in marks:
            seen = self.flow.suspect_kind(
                "sampling", Kind.OP, Role.ACTIVATION, given.dtype, "multinomial", op="low-precision-sampling"
            )
            seen.confirmed = torch.is_grad_enabled()

    def drawn(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self.flow.mark(out, uniform=True)

    def binary_cross_entropy(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Probabilities rounded before log(p) and log(1 - p): CUDA autocast refuses this, CPU autocast lets it pass."""
        given = args[0]
        cast = self.flow.of(given).get("cast_of")
        low = cast.dtype if cast and cast.dtype in LOW else given.dtype
        under_autocast = self._autocast.active() is not None
        if not in_graph(args) or (low not in LOW and not under_autocast):
            return
        seen = self.flow.suspect_kind(
            "bce",
            Kind.OP,
            Role.LOSS,
            low,
            f"the probabilities are {DTYPE_NAMES[low]}",
            op="binary_cross_entropy",
            under_autocast=under_autocast,
        )
        seen.confirmed = True
        values = sample(given)
        if values is not None and seen.count <= 4:
            certain = ((values == 0) | (values == 1)).sum()
            total = torch.full_like(certain, values.numel())
            self.ledger.defer([certain, total], self.flow.share(seen, "certain_share"))
