"""Range and running values: float16 results near 65504, sums that reach it, and recurrences that round at each step.

Known limitations: a recurrence is recognised by its line running many times in one call, not through a scan operator.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..operands import in_graph, tensors_of
from ..optable import MATMULS, NORMS, POINTWISE
from ..process.ledger import Ledger, Observation
from ..sites import user_frame
from ..trackers.autocast import Autocast
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from ..trackers.samples import nonfinite
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import FORWARD, Registration, Watcher

GROWING = MATMULS | {"pow", "square", "exp", "sum"}
"""Ops whose results grow with the model: what comes near the end of the range today is past it tomorrow."""
ADDITIONS = frozenset({"add", "sub", "rsub"})
OVERFLOWING = ADDITIONS | NORMS | frozenset({"mul", "addcmul", "exp2", "expm1", "cumsum", "prod"})
"""Ops of which only an infinite result is told. Division is none of them: it gives inf of a zero."""
MASK = 65504.0 / 2
"""An addend from here on is a mask (torch.finfo(torch.float16).min), and its sum with a score may well be infinite."""
TOO_LITTLE_HEADROOM = 2.0
"""Bits between the largest value seen and 65504."""
IN_PLACE = frozenset({"add_", "sub_", "mul_", "div_", "lerp_", "addcmul_", "addcdiv_"})
LOOP = 16
"""Iterations of one line, each rounding what the one before stored."""


@dataclass(slots=True)
class Run:
    """A line that runs again and again within one call."""

    clock: int
    began: int
    """Matmuls of the whole run before it."""
    matmuls: int
    executed: int = 0
    seen: Observation | None = None
    """What is said of it, once it has run often enough."""
    kept: deque[tuple[Any, int]] = field(default_factory=lambda: deque(maxlen=4))
    """Where its last results lie, and how many results of the line led to each."""


class Ranges(Watcher):
    """PA405 and PA411."""

    def __init__(
        self,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        autocast: Autocast,
        entering: Entering,
    ) -> None:
        self._autocast = autocast
        self._entering = entering
        self._window = window
        self._tensors = tensors
        self.flow = flow
        self.ledger = ledger
        self.matmuls = 0
        self._runs: dict[tuple[int, int], Run] = {}
        self._longest: dict[int, tuple[Observation, int]] = {}
        """Running values, and how often each was rounded at most."""
        self._order = 0
        self._first_overflow: tuple[int, Observation] | None = None

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, MATMULS, self.matmul, False
        yield FORWARD, GROWING | OVERFLOWING, self.result, True
        yield FORWARD, POINTWISE | IN_PLACE | {"_to_copy"}, self.recurrence, True

    def matmul(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self.matmuls += 1
        if isinstance(out, Tensor) and out.dtype is torch.float32 and in_graph(args):
            self._float32_matmul()

    def _float32_matmul(self) -> None:
        """A float32 matmul that trains, in a run that declared mixed precision."""
        declared = [dtype for dtype in self._autocast.entered_with_gradients() if dtype in LOW]
        if declared:
            seen = self.flow.suspect_kind(
                "float32 matmul",
                Kind.OP,
                Role.MATMUL_COMPUTE,
                torch.float32,
                f"autocast({DTYPE_NAMES[declared[0]]}) was entered elsewhere",
                op="float32-matmul-under-mixed-precision",
            )
            seen.confirmed = True

    def result(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A float16 result whose largest values come near the end of the range."""
        if out.dtype is not torch.float16 or not in_graph(args) or not out.numel() or not self.ledger.measures:
            return
        summed = name == "sum"
        self._order += 1
        order = self._order
        if summed:
            seen = self.flow.suspect("sum", Role.REDUCTION, out.dtype, "sum", pattern="near-overflow")
        else:
            seen = self.flow.suspect_kind(
                f"range {name}", Kind.OVERFLOW, Role.ACTIVATION, out.dtype, name, inf_seen=False
            )
        if seen.count > 4:
            return
        inputs = [t for t in tensors_of(args) if t.dtype is torch.float16 and t.numel()]
        inside = MASK if name in ADDITIONS else math.inf
        clean = torch.stack([(t.abs() < inside).all() for t in inputs]).all() if inputs else torch.isfinite(out).any()

        def use(values: list[float]) -> None:
            bad, _, largest, finite_inputs = values
            if not finite_inputs:
                return  # the overflow happened earlier, and is reported there
            bits = math.log2(FLOATING["float16"].max / largest) if largest > 0 else 99.0
            if bad or (bits < TOO_LITTLE_HEADROOM and name in GROWING):
                self.share_of(seen, values, bits)
                if not summed:
                    seen.attrs["inf_seen"] = bool(bad) or bool(seen.attrs.get("inf_seen"))
                self._keep_first(seen, order)

        self.ledger.defer([*nonfinite(out), clean], use)

    @staticmethod
    def share_of(seen: Observation, values: list[float], bits: float) -> None:
        if values[0]:
            seen.evidence["inf_share"] = max(seen.evidence.get("inf_share", 0.0), values[0] / values[1])
        seen.evidence["headroom"] = min(seen.evidence.get("headroom", bits), bits)

    def _keep_first(self, seen: Observation, order: int) -> None:
        """Only the first op of a chain that leaves the range is confirmed: the others follow from it."""
        if seen.confirmed:
            return
        if self._first_overflow is None or order < self._first_overflow[0]:
            if self._first_overflow is not None:
                self._first_overflow[1].confirmed = False
            self._first_overflow = (order, seen)
            seen.confirmed = True

    def recurrence(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """`state = keep * state + x[t]`, stored in low precision at every iteration of one loop."""
        rounded = self.flow.of(args[0]).get("from") if name == "_to_copy" else frozenset()
        if rounded is None:  # a cast of what was never low, as autocast's of weights
            return
        frame = user_frame()
        if frame is None:
            return
        key = (id(frame), frame.f_lineno or 0)
        now = self._window.clock
        run = self._runs.get(key)
        if run is None or run.clock != now:
            if len(self._runs) > 4096:
                self._runs.clear()
            run = self._runs[key] = Run(now, self.matmuls, self.matmuls)
        run.executed += 1
        if run.executed < 3:
            return
        tensors, in_place = self._tensors, name in IN_PLACE
        given: set[Any] = {tensors.of(arg) for arg in args if isinstance(arg, Tensor)}
        given |= rounded  # computed in float32, and rounded once it is done
        if in_place:
            given.add((tensors.of(out), out.storage_offset(), out.numel()))
        links = max((count for kept, count in run.kept if kept in given), default=-1)
        if links < 0 and run.began != self.matmuls:
            run.kept.clear()  # a cell's own gates: what a matmul feeds is no running value
        # A matmul between two iterations makes this a residual stream or a recurrent cell: short-lived values.
        links += run.matmuls == self.matmuls or links < 0
        run.matmuls = self.matmuls
        known = tensors.learn(out)
        # Written in place, it is the same memory that comes back: another row of it is another value.
        run.kept.append(((known, out.storage_offset(), out.numel()) if in_place else known, links))
        if links == LOOP:
            run.seen = self._running(out)
        if run.seen is not None:
            self._longest[id(run.seen)] = (run.seen, max(links, self._longest.get(id(run.seen), (None, 0))[1]))

    def _running(self, out: Tensor) -> Observation:
        """A value that has been rounded often enough; one that needs no gradient counts if a loss is made of it."""
        seen = self.flow.suspect("recurrence", Role.REDUCTION, out.dtype, "", pattern="running")
        if torch.is_grad_enabled():
            seen.confirmed = True
        else:
            self._entering.mark(out, seen)
        return seen

    def complete(self, told: list[Observation]) -> None:
        """Says how often each running value was rounded."""
        for seen, links in self._longest.values():
            seen.detail = f"rounded {links} times in one call, each time on top of the last"
