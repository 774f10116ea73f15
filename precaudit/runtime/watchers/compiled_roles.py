"""The roles inside compiled regions, by the graphs that torch.compile made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES, LOW
from ..events import Bus
from ..optable import MATMULS
from ..process.ledger import Ledger, Observation
from ..trackers.compiled import RegionsRan
from . import Watcher

SOFTMAXES = frozenset({"_softmax", "_log_softmax", "_safe_softmax"})
STATISTICS = frozenset({"var_mean", "rsqrt"})
"""What inductor's decompositions leave of a normalisation."""
LIBRARY_NORMS = frozenset(
    "native_layer_norm native_group_norm _fused_rms_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _batch_norm_with_update".split()
)


class CompiledRoles(Watcher):
    """Rows of the dtype table, of the backward that went through the most."""

    def __init__(self, bus: Bus, ledger: Ledger) -> None:
        self._ledger = ledger
        bus.on(RegionsRan, self._regions_ran)

    def _regions_ran(self, event: RegionsRan) -> None:
        held: dict[tuple[Role, Any], list[int]] = {}
        for name, dtype, size in (op for ops in event.graphs for op in ops):
            for role, how in _roles(name, dtype) if dtype in FLOATING_DTYPES else ():
                tally = held.setdefault((role, how), [0, 0])
                tally[0] += 1
                tally[1] += size if role is Role.ACTIVATION else 0
        for (role, dtype), (count, size) in held.items():
            key = (CompiledRoles, role, dtype)
            seen = self._ledger.get(key) or self._ledger.put(
                key,
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES[dtype],
                    role,
                    detail="in the graphs of compiled regions",
                    attrs={"level": "graph"},
                ),
            )
            seen.count, seen.bytes = max(seen.count, count), max(seen.bytes, size)


def _roles(name: str, dtype: Any) -> Iterable[tuple[Role, Any]]:
    yield Role.ACTIVATION, dtype
    if name in MATMULS:
        yield Role.MATMUL_COMPUTE, dtype
    elif name in SOFTMAXES:
        yield Role.SOFTMAX, dtype
    elif name in STATISTICS:
        yield Role.NORM_COMPUTATION, dtype
    elif name in LIBRARY_NORMS:
        yield Role.NORM_COMPUTATION, torch.float32 if dtype in LOW else dtype
