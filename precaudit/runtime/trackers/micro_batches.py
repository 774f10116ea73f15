"""Knows leaves and their gradients, and counts the micro-batches whose gradients are summed in each `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..events import (
    BackwardEnded,
    Bus,
    GradientReset,
    StepBegan,
    StepEnded,
    StepOver,
    StepUnseen,
    WindowOpened,
)
from .graph import GraphRecomputed, GraphWalked
from .holders import Holders
from .optimizers import parameters
from .steps import Steps
from .tensors import Leaf, Place, Tensors
from .unseen_steps import UnseenSteps
from .window import Window


class GradientsReady(NamedTuple):
    """These leaves' gradients are what the optimizer steps on next, as far as can be told."""

    optimizer: Any
    leaves: list[Tensor]
    summed: Callable[[Tensor], int]
    """How many micro-batches' gradients are in a leaf's `.grad`."""
    spent: list[tuple[Tensor, Place]] = []
    """Leaves that no optimizer holds and what their `.grad` was, a low sum that went elsewhere and was reset since."""


class MicroBatches:
    """From one backward to the step that uses what it left."""

    def __init__(
        self, bus: Bus, tensors: Tensors, window: Window, steps: Steps, unseen: UnseenSteps, holders: Holders
    ) -> None:
        self._bus, self._tensors, self._window, self._steps, self._unseen = bus, tensors, window, steps, unseen
        self._holders = holders
        self.shapes: set[tuple[int, ...]] = set()
        """The shapes of all parameters that a backward reached."""
        self._leaves: list[Tensor] = []
        """Those that the last backward reached."""
        self._sums: dict[Leaf, Place] = {}
        """Low `.grad` that several micro-batches were added to since the last step: they may be reset before it."""
        self._stepped_over: list[Leaf] = []
        """Those whose gradients the step that is going on uses."""
        self._told = 0
        """The window's clock when that was told."""
        bus.on(GraphWalked, self._graph_walked)
        bus.on(GraphRecomputed, self._graph_recomputed)
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(StepBegan, self._step_began)
        bus.on(StepEnded, self._step_ended)
        bus.on(StepUnseen, self._step_unseen)
        bus.on(GradientReset, lambda event: self._start_anew([event.leaf]))
        bus.on(WindowOpened, lambda event: self._start_anew(self._tensors.leaves()))
        bus.on(StepOver, lambda event: self._tensors.forget_expired())

    def has_shape(self, tensor: Tensor) -> bool:
        """Whether some parameter has this tensor's shape."""
        return tuple(tensor.shape) in self.shapes

    def of(self, leaf: Tensor) -> int:
        """How many micro-batches' gradients are summed in this leaf's `.grad`."""
        known = self._tensors.leaf(leaf)
        return known.micro_batches if known is not None else 0

    def _start_anew(self, leaves: Iterable[Leaf]) -> None:
        for leaf in leaves:
            leaf.micro_batches = 0

    def _known(self, leaves: Iterable[Tensor]) -> Iterator[Leaf]:
        return filter(None, map(self._tensors.leaf, leaves))

    # -- backward

    def _graph_walked(self, event: GraphWalked) -> None:
        self._leaves = list(event.found.leaves.values())
        if self._steps.trains:
            self._start_anew(self._known(leaf for leaf in self._leaves if leaf.grad is None))

    def _graph_recomputed(self, event: GraphRecomputed) -> None:
        known = {id(leaf) for leaf in self._leaves}
        more = [leaf for key, leaf in event.found.leaves.items() if key not in known]
        self._leaves += more
        self._start_anew(self._known(leaf for leaf in more if leaf.grad is None))

    def _backward_ended(self, event: BackwardEnded) -> None:
        leaves, self._leaves = self._leaves, []
        if not event.accumulates and (self._steps.accumulates or self._steps.differentiates):
            for leaf in leaves:
                if self._tensors.of(leaf).parameter is None and not isinstance(leaf, torch.nn.Parameter):
                    self._tensors.learn(leaf).is_input = True
            return
        for leaf in leaves:
            gradient = leaf.grad
            if gradient is not None and event.accumulates:
                known = self._tensors.meet_gradient(leaf, gradient)
                known.micro_batches += 1
                if gradient.dtype in LOW:
                    self._window.every_micro_batch_counts = True
                    if known.micro_batches >= 2 and known.gradient is not None:
                        self._sums[known] = known.gradient
            else:
                known = self._tensors.meet(leaf)
            if self._tensors.is_trained(known):
                self.shapes.add(tuple(private.local(leaf).shape))
        for optimizer in self._unseen.silent:
            self._bus.tell(GradientsReady(optimizer, parameters(optimizer), self.of))
        if self._steps.trains and self._steps.no_optimizer:  # the step may come any time
            self._steps.by_hand.remember(leaves)
            self._bus.tell(GradientsReady(self._steps.hand_written, leaves, self.of))

    # -- the step

    def _step_unseen(self, event: StepUnseen) -> None:
        by_hand = event.optimizer is self._steps.hand_written
        self._start_anew(self._tensors.leaves() if by_hand else self._known(parameters(event.optimizer)))

    def _step_began(self, event: StepBegan) -> None:
        for parameter in parameters(event.optimizer):
            self._tensors.meet_parameter(parameter)
        self._tell(event.optimizer)

    def _step_ended(self, event: StepEnded) -> None:
        if self._window.clock != self._told:  # the step's closure had a backward of its own, the last of the sum
            self._tell(event.optimizer)
        self._start_anew(self._stepped_over)
        self._stepped_over = []
        self._sums.clear()

    def _tell(self, optimizer: Any) -> None:
        """The optimizer's own gradients, and those of leaves that no optimizer holds: low copies of masters."""
        mine = parameters(optimizer)
        owned = {id(p) for other in (optimizer, *self._steps.built) for p in parameters(other)}
        strays = [leaf for leaf in self._tensors.with_gradient() if leaf.id not in owned and not leaf.record.is_input]
        if strays:  # `master.grad = weight.grad` hands a gradient over
            used = {self._tensors.of(private.local(p.grad)) for p in mine if p.grad is not None}
            strays = [leaf for leaf in strays if leaf.gradient is None or leaf.gradient.record not in used]
        self._stepped_over, self._told = [*self._known(mine), *strays], self._window.clock
        found = [leaf for leaf in map(self._holders.find, strays) if leaf is not None]
        self._bus.tell(GradientsReady(optimizer, [*mine, *found], self.of, list(self._spent(owned))))

    def _spent(self, owned: set[int]) -> Iterator[tuple[Tensor, Place]]:
        for leaf, place in self._sums.items():
            held = None if leaf.id in owned or leaf.record.expired else self._holders.parameter(leaf.id)
            if held is not None and (held.grad is None or not leaf.micro_batches):
                yield held, place
