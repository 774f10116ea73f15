"""The roles that the graph of a backward shows: activations, matmuls, softmax, norms, weights as they were read."""

from __future__ import annotations

from typing import Any

import torch

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..process.ledger import Ledger, Observation
from ..trackers.graph import GraphRecomputed, GraphWalked, Walk
from . import Watcher


class GraphRoles(Watcher):
    """One row for each role and dtype: the most that one backward went through."""

    def __init__(self, bus: Bus, ledger: Ledger) -> None:
        self._ledger = ledger
        bus.on(GraphWalked, self._graph_walked)
        bus.on(GraphRecomputed, lambda event: self._rows(event.whole))

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            self._rows(event.found)

    def _rows(self, found: Walk) -> None:
        for dtype, (count, size) in found.activations.items():
            self._row(Role.ACTIVATION, dtype, count, size)
        for role, tally in ((Role.MATMUL_COMPUTE, found.matmuls), (Role.SOFTMAX, found.softmaxes)):
            for dtype, count in tally.items():
                self._row(role, dtype, count, 0)
        for dtype, count in found.norms.items():
            # A library kernel computes its statistics in float32, whatever goes in.
            self._row(Role.NORM_COMPUTATION, torch.float32 if dtype in LOW else dtype, count, 0)
        weights: dict[Any, list[int]] = {}
        for key, leaf in found.leaves.items():
            if key in found.unread:
                continue
            dtype = found.casts_of_leaves.get(key, leaf.dtype)
            held = weights.setdefault(dtype, [0, 0])
            held[0] += 1
            own = getattr(leaf, "_local_tensor", leaf)  # of a DTensor, what this rank holds
            held[1] += own.numel() * getattr(dtype, "itemsize", own.element_size())
        for dtype, (count, size) in weights.items():
            self._row(Role.FORWARD_WEIGHT, dtype, count, size)

    def _row(self, role: Role, dtype: Any, count: int, size: int) -> None:
        """A role row: the largest seen in one backward."""
        if dtype not in DTYPE_NAMES:
            return
        key = (GraphRoles, role, dtype)
        seen = self._ledger.get(key) or self._ledger.put(key, Observation(Kind.HOLDS, DTYPE_NAMES[dtype], role))
        seen.count, seen.bytes = max(seen.count, count), max(seen.bytes, size)
