"""Whether a ratio of probabilities is trained: exp(new log-probability - old), as policy gradients have it.

Known limitations: a log-probability is known where log_softmax or logsumexp made it and only shape and dtype changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..events import BackwardBegan, Bus
from ..operands import in_graph
from ..process.ledger import Observation
from ..trackers.tensors import Record, Tensors
from . import FORWARD, Registration, Watcher


class Ratios(Watcher):
    """Says so beside what would have float16 replaced by bfloat16."""

    def __init__(self, bus: Bus, tensors: Tensors) -> None:
        self._tensors = tensors
        self._log_probs: set[Record] = set()
        self._differences: set[Record] = set()
        self._trained = False
        bus.on(BackwardBegan, lambda event: self._forget())

    def _forget(self) -> None:
        self._log_probs.clear()
        self._differences.clear()

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_log_softmax",), self.log_prob, False
        yield FORWARD, ("logsumexp",), self.log_prob, False
        yield FORWARD, ("gather", "index", "_to_copy", "mean", "sum", "neg"), self.passes, False
        yield FORWARD, ("sub",), self.difference, False
        yield FORWARD, ("exp",), self.ratio, False

    def is_log_prob(self, tensor: Tensor) -> bool:
        """Whether it is one of this step's, differentiable or not."""
        return bool(self._log_probs) and self._tensors.of(tensor) in self._log_probs

    def log_prob(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self._log_probs.add(self._tensors.learn(out))

    def passes(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if self._log_probs:
            known = self._tensors.of(args[0])
            for held in (self._log_probs, self._differences):
                if known in held:
                    held.add(self._tensors.learn(out))

    def difference(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Of a new log-probability and an old one; of logits and their logsumexp it is a log-probability itself."""
        if not self._log_probs or not isinstance(args[1], Tensor):
            return
        if self.is_log_prob(args[0]):
            if in_graph(args):
                self._differences.add(self._tensors.learn(out))
        elif self.is_log_prob(args[1]):
            self._log_probs.add(self._tensors.learn(out))

    def ratio(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self._trained |= self._tensors.of(args[0]) in self._differences and in_graph(args)

    def complete(self, told: list[Observation]) -> None:
        for seen in told if self._trained else ():
            if seen.attrs.get("prefer") == "bfloat16":
                seen.attrs["trains_ratio"] = True
