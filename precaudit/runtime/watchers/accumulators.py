"""Turns long-lived writes into roles: averaged weights, running sums, gradient buffers, hand-updated weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..process.ledger import Observation
from ..trackers.graph import GraphWalked
from ..trackers.kept import Totals
from ..trackers.lineage import Flow, Lineage
from ..trackers.long_lived import LongLived, Write
from ..trackers.micro_batches import MicroBatches
from ..trackers.modules import Modules
from ..trackers.optimizers import nbytes
from ..trackers.parameter_writes import ParameterWrites
from ..trackers.steps import Steps
from ..trackers.tensors import Tensors
from . import Watcher
from .updates import Updates


class Accumulators(Watcher):
    """Asked each time that the report is written: only then is it known what lived long."""

    def __init__(
        self,
        bus: Bus,
        tensors: Tensors,
        flow: Flow,
        steps: Steps,
        micro_batches: MicroBatches,
        modules: Modules,
        long_lived: LongLived,
        parameter_writes: ParameterWrites,
        updates: Updates,
    ) -> None:
        self._tensors, self._flow, self._steps = tensors, flow, steps
        self._micro_batches, self._modules = micro_batches, modules
        self._long_lived, self._parameter_writes, self._updates = long_lived, parameter_writes, updates
        self._last_backward: Site | None = None
        bus.on(GraphWalked, self._graph_walked)

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains:
            self._last_backward = event.site

    def observations(self) -> Iterable[Observation]:
        yield from self._found()
        if not self._steps.by_optimizer:
            yield from self._hand_updated()

    def _found(self) -> list[Observation]:
        """Memory updated from itself over several backward passes, whatever its name.

        A buffer of a parameter's shape that parameters flow into is an average of them.
        """
        groups: dict[Any, Observation] = {}
        numbers: dict[Any, Totals] = {}
        for write in self._long_lived.living():
            if self._is_accumulator(write):
                self._add(groups, numbers, write)
        living = [line for line in self._flow.living() if line.generation >= 2 and not _handed_on(line)]
        # A sum of gradients is dropped once its step was taken; anything else that died was no long-lived state.
        alive = {line.start for line in living}
        spent = [line for start, line in self._flow.sums.items() if start not in alive]
        for line in (*living, *spent):
            site = self._flow.lineage_sites.get(line.start)
            what, role = "ema" if line.from_parameter else "value", Role.ACCUMULATOR
            if line.from_gradient:
                what, role = ("moment", Role.OPTIMIZER_STATE) if line.decays else ("buffer", Role.GRADIENT_ACCUMULATION)
            seen = groups.setdefault(
                (role, what, line.dtype, line.start),
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES[line.dtype],
                    role,
                    site,
                    detail="rounded at each step, in wider memory",
                    attrs={"what": what},
                ),
            )
            if not line.in_wide:
                seen.detail = "each step makes a new one from the old"
            if what == "moment":
                seen.attrs["own"] = True
            seen.count += 1
        for key, total in numbers.items():
            self._evidence(groups[key], total)
        return list(groups.values())

    def _is_accumulator(self, write: Write) -> bool:
        known = write.memory
        if len(write.clock) < 2 or not write.updates_itself or known.expired or write.dtype not in DTYPE_NAMES:
            return False
        return not (known.is_gradient or known.by_optimizer or known.compensates)

    def _add(self, groups: dict[Any, Observation], numbers: dict[Any, Totals], write: Write) -> None:
        like_parameter = write.shape in self._micro_batches.shapes
        role, what, detail = Role.ACCUMULATOR, "value", "written in place at each step"
        if "grad" in write.sources and like_parameter and write.decays:
            role, what, detail = Role.OPTIMIZER_STATE, "moment", "buffers of a hand-written optimizer"
        elif "grad" in write.sources and like_parameter:
            role, what, detail = Role.GRADIENT_ACCUMULATION, "buffer", "in a buffer beside .grad"
        elif "param" in write.sources and like_parameter:
            what, detail = "ema", "weights are added to it at each step"
        elif "loss" in write.sources:
            what, detail = "metric", "running sum of the loss"
        key = (role, what, write.dtype, write.site)
        seen = groups.setdefault(
            key,
            Observation(
                Kind.HOLDS, DTYPE_NAMES[write.dtype], role, write.site, write.cause, detail=detail, attrs={"what": what}
            ),
        )
        if what == "moment":
            seen.attrs["own"] = True
        seen.count += 1
        seen.bytes += math.prod(write.shape) * getattr(write.dtype, "itemsize", 4)
        numbers.setdefault(key, Totals()).join(write.numbers)

    def _evidence(self, seen: Observation, total: Totals) -> None:
        if seen.role is Role.GRADIENT_ACCUMULATION:
            self._updates.of_sums(seen, total)
        elif total.should_move:
            seen.evidence["updates_lost"] = total.stuck / total.should_move

    def _hand_updated(self) -> list[Observation]:
        """Parameters that a loop without an Optimizer updates itself."""
        held: dict[Any, list[Tensor]] = {}
        for leaf in self._parameter_writes.leaves():
            kinds = self._tensors.of(private.local(leaf)).writes
            if "update" in kinds:
                held.setdefault((leaf.dtype, "kahan" in kinds), []).append(leaf)
        out = [] if held else self._replaced()
        for (dtype, carried), leaves in held.items():
            seen = Observation(
                Kind.HOLDS,
                DTYPE_NAMES.get(dtype, str(dtype)),
                Role.MASTER_WEIGHT,
                self._parameter_writes.hand_written_at,
                self._modules.why_low(leaves[0]) if dtype in LOW else None,
                detail=f"{len(leaves)} parameters updated by the training loop itself",
                count=len(leaves),
                bytes=sum(nbytes(leaf) for leaf in leaves),
                attrs={"optimizer": "hand-written"},
            )
            if dtype in LOW:
                self._updates.of_parameters(seen, leaves)
            if carried:
                seen.attrs["allowed_because"] = "kahan"
            out.append(seen)
        return out

    def _replaced(self) -> list[Observation]:
        """Parameters that got other memory at each step (`p.data = …`), or gave their place (`w = w - lr * g`)."""
        by_hand = self._steps.by_hand
        if not by_hand.replaces:
            return []
        return [
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES.get(dtype, str(dtype)),
                Role.MASTER_WEIGHT,
                self._last_backward,
                detail=f"{count} parameters replaced by the training loop itself",
                count=count,
                bytes=size,
                attrs={"optimizer": "hand-written"},
            )
            for dtype, (count, size) in by_hand.held.items()
        ]


def _handed_on(line: Lineage) -> bool:
    """Whether it is a sum of gradients, widened for the step that takes it."""
    return line.in_wide and line.from_gradient and not line.decays
