"""What needs no gradient and enters a loss all the same: a teacher's softmax, an advantage, a target.

Observations of such values wait until a backward begins whose graph takes the value between the loss and the first
matmul, softmax or normalisation: there the model begins, and what enters it is an input.

Known limitations: what goes through NumPy or Python numbers on its way is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...model.vocabulary import Role
from .. import torch_private as private
from ..events import Boundary, Bus, StepOver
from ..operands import in_graph, tensors_of
from ..optable import LOSS_KERNELS, NORMS, REDUCING
from ..process.ledger import Observation
from .graph import GraphWalked, head
from .tensors import Tensors

MARK = "enters"
COMPARISONS = LOSS_KERNELS | {"sub", "rsub"}
"""Ops by which a loss holds a model's output against a target."""
MANY = 8
"""Observations that one value carries."""


class Entering:
    """Observations that wait for a loss, by the autograd node that takes what they are of."""

    def __init__(self, bus: Bus, tensors: Tensors) -> None:
        self._tensors = tensors
        self.any = False
        """Some value of this step is marked."""
        self._waiting: dict[int, tuple[Observation, ...]] = {}
        """Autograd sequence number -> what is confirmed once that node is found below a loss."""
        self._needs: dict[int, tuple[Observation, str]] = {}
        """Observations that are nothing without this number."""
        self._targets: set[int] = set()
        """The `id` of those that count as targets only."""
        self._reached: dict[int, Observation] = {}
        """Those of them that reached a loss."""
        bus.on(Boundary, self._boundary)
        bus.on(GraphWalked, self._graph_walked)
        bus.on(StepOver, self._step_over)

    def mark(self, value: Any, seen: Observation, measured: str = "", target: bool = False) -> None:
        """This value, or each of these, was made in the way that the observation says.

        With `measured` it takes a number of that name, too, before it is confirmed; with `target` the value itself has
        to be compared with a model's output, not what was computed of it and of others.
        """
        if measured:
            self._needs[id(seen)] = seen, measured
        if target:
            self._targets.add(id(seen))
        for tensor in tensors_of([value] if isinstance(value, Tensor) else value):
            self._put(tensor, (seen,))

    def made_by_node(self, seen: Observation) -> None:
        """The op in progress, a differentiable one, is what the observation says."""
        # The node of this op was made just before it ran, so it has the number before the next one.
        self._wait((seen,))

    def through(self, name: str, args: Iterable[Any], out: Any) -> None:
        """An op that computes `out` of such values, or in-place; one with a differentiable operand takes them in."""
        given = tensors_of(args)
        found: tuple[Observation, ...] = ()
        for tensor in given:
            marks = self._tensors.of(tensor).marks
            if marks and MARK in marks and tensor.dtype.is_floating_point and not tensor.requires_grad:
                found = _joined(found, marks[MARK])
        if found and self._targets:
            found = self._still_targets(name, given, found)
        if not found:
            return
        if in_graph(given):
            self._wait(found)
        else:
            for tensor in tensors_of([out] if isinstance(out, Tensor) else out):
                if tensor.dtype.is_floating_point:  # of a comparison nothing is left
                    self._put(tensor, found)

    def _still_targets(self, name: str, given: list[Tensor], found: tuple[Observation, ...]) -> tuple[Observation, ...]:
        """Without what is no target any more: an advantage of rewards, a mean, a weight of the loss."""
        taken = in_graph(given)
        alone = all(tensor.ndim == 0 or MARK in (self._tensors.of(tensor).marks or ()) for tensor in given)
        if name in COMPARISONS if taken else alone and name not in REDUCING and name not in NORMS:
            return found
        return tuple(seen for seen in found if id(seen) not in self._targets)

    def _put(self, tensor: Tensor, found: tuple[Observation, ...]) -> None:
        known = self._tensors.learn(tensor)
        marks = known.marks or {}
        known.marks = {**marks, MARK: _joined(marks.get(MARK, ()), found)}
        self.any = True

    def _wait(self, found: tuple[Observation, ...]) -> None:
        number = private.next_sequence_number() - 1
        self._waiting[number] = _joined(self._waiting.get(number, ()), found)

    def _graph_walked(self, event: GraphWalked) -> None:
        if not self._waiting or not event.trains:
            return
        for number in head(event.roots):
            for seen in self._waiting.pop(number, ()):
                if id(seen) in self._needs:
                    self._reached[id(seen)] = seen
                    continue
                seen.confirmed = True
                if seen.role is Role.SOFTMAX:
                    seen.attrs["feeds"] = "loss"

    def _boundary(self, event: Boundary) -> None:
        """The numbers of the step have been read."""
        for key, seen in self._reached.items():
            seen.confirmed |= self._needs[key][1] in seen.evidence

    def _step_over(self, event: StepOver) -> None:
        self._waiting.clear()
        self.any = self.any and any(MARK in (known.marks or ()) for known in self._tensors.living())


def _joined(one: tuple[Observation, ...], other: tuple[Observation, ...]) -> tuple[Observation, ...]:
    return (*one, *(seen for seen in other if all(seen is not known for known in one)))[:MANY]
