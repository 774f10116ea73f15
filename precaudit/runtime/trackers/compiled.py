"""What runs compiled: the graphs that torch.compile made, which of them ran, and steps whose inside nobody sees.

The dtypes are those of the AOTAutograd graphs, after decomposition and before fusion: evidence of the graph, not of the
run. A region counts where a backward of the traced steps goes through it.

Known limitations: inside a fused kernel of inductor low-precision values are computed in float32, whatever the graph
says of them, so nothing of a graph is called a mistake. In which dtype a region reads its weights is not told. A step
that is compiled as a whole is seen by its effect, at the next backward; under --keep-going it is compiled once more
when the trace is taken out, for Dynamo guards on the table of optimizer hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .. import torch_private as private
from ..dtypes import LOW
from ..events import Bus, CompileCalled, GraphCompiled, ParameterChangedUnseen, StepBegan, StepEnded
from ..operations import OPTIMIZER
from .graph import GraphRecomputed, GraphWalked
from .optimizers import parameters
from .window import Window

DRAWING = frozenset({"randint", "inductor_randint", "random"})
MASKING = frozenset({"bitwise_and", "where"})


class RegionsRan(NamedTuple):
    """A backward goes through these compiled regions: the ops of the forward graph of each."""

    graphs: Sequence[private.GraphOps]


class Compiled:
    """The graphs by AOT id."""

    def __init__(self, bus: Bus, window: Window) -> None:
        self._bus, self._window = bus, window
        self._graphs: dict[int, private.GraphOps] = {}
        """AOT id -> the forward graph."""
        self._compiles = False
        self._fuses = False
        """Some backend runs kernels of its own, whose insides the op tap does not see."""
        self.ran_in_window: set[int] = set()
        self._operations = 0
        """Forward operations of compiled regions in the traced steps."""
        self._stochastic: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose compiled step draws random bits below what it keeps."""
        self._before: dict[int, int] = {}
        """`id` of a parameter of the optimizer that steps -> its version before the step."""
        self._stepping: Any = None
        """The optimizer that is inside its step."""
        bus.on(CompileCalled, self._compile_called)
        bus.on(GraphCompiled, self._graph_compiled)
        bus.on(GraphWalked, self._graph_walked)
        bus.on(GraphRecomputed, lambda event: self._ran(event.found.compiled))
        bus.on(StepBegan, self._step_began)
        bus.on(StepEnded, self._step_ended)

    def _compile_called(self, event: CompileCalled) -> None:
        self._compiles = True
        self._fuses |= not str(event.backend).startswith(("eager", "aot_eager"))

    def _graph_compiled(self, event: GraphCompiled) -> None:
        if event.stage == "forward":
            self._graphs[event.aot_id] = event.ops
        elif event.stage == "inference" and self._stepping is not None and self._window.phase == OPTIMIZER:
            names = {name for name, _, _ in event.ops}
            if names & DRAWING and names & MASKING:
                self._stochastic.add(self._stepping)

    # -- regions

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains and event.found.compiled:
            self._ran(event.found.compiled)

    def _ran(self, ids: Iterable[int]) -> None:
        regions = {aot_id: self._graphs[aot_id] for aot_id in ids if aot_id in self._graphs}
        if not regions:
            return
        self._bus.tell(RegionsRan(list(regions.values())))
        if self._window.tracing:
            self.ran_in_window |= regions.keys()
            self._operations += sum(map(len, regions.values()))

    def coverage(self, dispatched: int) -> dict[str, float]:
        """Regions and forward operations that ran compiled in the traced steps, and their share; {} where none did."""
        if not self._operations:
            return {}
        everything = self._operations + dispatched if self._fuses else max(self._operations, dispatched)
        share = self._operations / everything
        return {"regions": len(self.ran_in_window), "operations": self._operations, "share": round(share, 4)}

    # -- a step whose inside is compiled

    def _step_began(self, event: StepBegan) -> None:
        """Remembers the versions of low-precision parameters; compiled code writes to them unseen."""
        self._stepping = event.optimizer
        if self._compiles:
            low = (p for p in parameters(event.optimizer) if private.local(p).dtype in LOW)
            self._before = {id(p): p._version for p in low}

    def _step_ended(self, event: StepEnded) -> None:
        self._stepping = None
        before, self._before = self._before, {}
        how = "stochastic" if event.optimizer in self._stochastic else "update"
        for parameter in parameters(event.optimizer) if before else ():
            if parameter._version != before.get(id(parameter), parameter._version):
                self._bus.tell(ParameterChangedUnseen(parameter, how))
