"""Gradients as the step finds them, and which of them are sums over several micro-batches."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import BackwardEnded, Bus, WindowOpened
from ..process.ledger import Ledger, Observation
from ..trackers.claims import SumsClaimed
from ..trackers.graph import GraphWalked
from ..trackers.micro_batches import GradientsReady
from ..trackers.modules import Modules
from ..trackers.optimizers import nbytes
from ..trackers.steps import Steps
from . import Watcher


class Sum(NamedTuple):
    """Names the Observation of `.grad` tensors that several micro-batches were added to."""

    optimizer: int
    dtype: Any


class Returned(NamedTuple):
    """Names the Observation of gradients that autograd.grad returned."""

    dtype: Any


class HeldGradients(Watcher):
    """Of `.grad`, of what autograd.grad returns where that trains, of the sums that a framework keeps elsewhere."""

    def __init__(self, bus: Bus, ledger: Ledger, modules: Modules, steps: Steps) -> None:
        self._ledger, self._modules, self._steps = ledger, modules, steps
        self._last_backward: Site | None = None
        self._filed = False
        """A step found gradients in `.grad`: what autograd.grad returned went there."""
        bus.on(GraphWalked, self._graph_walked)
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(GradientsReady, self._gradients_ready)
        bus.on(SumsClaimed, self._sums_claimed)
        bus.on(WindowOpened, self._window_opened)

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            self._last_backward = event.site

    def _window_opened(self, event: WindowOpened) -> None:
        """Until now a reset that no hook tells of, `_foreach_zero_` inside a backward, was not seen."""
        for key in [key for key in self._ledger.observations if isinstance(key, Sum)]:
            del self._ledger.observations[key]

    def _backward_ended(self, event: BackwardEnded) -> None:
        """Training by autograd.grad may leave no `.grad`: its results are the gradients."""
        if event.accumulates or self._filed or not self._steps.trains or not isinstance(event.results, tuple):
            return
        held: dict[Any, list[int]] = {}
        for gradient in (result for result in event.results if isinstance(result, Tensor)):
            tally = held.setdefault(private.unwrapped(gradient).dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(private.unwrapped(gradient))
        for dtype, (count, size) in held.items():
            seen = Observation(Kind.HOLDS, _name(dtype), Role.GRADIENT, count=count, bytes=size)
            self._ledger.put(Returned(dtype), seen)

    def _gradients_ready(self, event: GradientsReady) -> None:
        """The dtypes of `.grad` before a step, and which of them are sums over several micro-batches."""
        optimizer, by_hand = id(event.optimizer), id(self._steps.hand_written)
        if optimizer != by_hand:  # it was built before the trace began: until its first step there seemed to be none
            of_hand = [key for key in self._ledger.observations if isinstance(key, tuple) and by_hand in key]
            for key in of_hand:
                del self._ledger.observations[key]
        held: dict[Any, list[int]] = {}
        summed: dict[Any, list[tuple[Tensor, int]]] = {}
        for parameter in event.leaves:
            gradient = parameter.grad
            if gradient is None:
                continue
            tally = held.setdefault(gradient.dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(gradient)
            if event.summed(parameter) >= 2:
                summed.setdefault(gradient.dtype, []).append((parameter, nbytes(gradient)))
        for parameter, place in event.spent:
            summed.setdefault(place.dtype, []).append((parameter, place.nbytes))
        if held and not self._filed:
            self._filed = True
            for key in [key for key in self._ledger.observations if isinstance(key, Returned)]:
                del self._ledger.observations[key]
        for dtype, (count, size) in held.items():
            self._ledger.put(
                (HeldGradients, optimizer, dtype),
                Observation(Kind.HOLDS, _name(dtype), Role.GRADIENT, count=count, bytes=size),
            )
        for dtype, params in summed.items():
            self._ledger.put(
                Sum(optimizer, dtype),
                Observation(
                    Kind.HOLDS,
                    _name(dtype),
                    Role.GRADIENT_ACCUMULATION,
                    self._last_backward,
                    self._modules.why_low(params[0][0]) if dtype in LOW else None,
                    detail=f".grad of {len(params)} parameters",
                    count=len(params),
                    bytes=sum(size for _, size in params),
                ),
            )

    def _sums_claimed(self, event: SumsClaimed) -> None:
        """A framework's own sums of several micro-batches' gradients: the most that one backward added to."""
        for (framework, dtype), claims in event.held.items():
            if dtype not in DTYPE_NAMES:
                continue
            names = dict.fromkeys(claim.detail for claim in claims if claim.detail)
            key = (SumsClaimed, framework, dtype)
            seen = self._ledger.get(key) or self._ledger.put(
                key,
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES[dtype],
                    Role.GRADIENT_ACCUMULATION,
                    claims[0].site or self._last_backward,
                    detail=f"{framework} {', '.join(names)}",
                ),
            )
            seen.count = max(seen.count, len(claims))
            seen.bytes = max(seen.bytes, sum(nbytes(claim.tensor) for claim in claims))


def _name(dtype: Any) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype))
