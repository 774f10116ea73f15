"""What compiled regions hold, read off the graphs that torch.compile makes of them; the code it runs is left alone.

The dtypes are those of the AOTAutograd graphs, after decomposition and before fusion: evidence of the graph, not of the
run. A region counts where a backward of the traced steps goes through it.

Known limitations: inside a fused kernel of inductor low-precision values are computed in float32, whatever the graph
says of them, so nothing of a graph is called a mistake. In which dtype a region reads its weights is not told. A step
that is compiled as a whole is seen by its effect, at the next backward; under --keep-going it is compiled once more
when the trace is taken out, for Dynamo guards on the table of optimizer hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES, LOW
from ..events import CompileCalled, StepBegan, StepEnded
from ..optable import MATMULS
from ..process.ledger import Observation
from ..trackers.graph import GraphRecomputed, GraphWalked
from ..trackers.optimizers import parameters
from ..trackers.window import OPTIMIZER

if TYPE_CHECKING:
    from ..session import Session

SOFTMAXES = frozenset({"_softmax", "_log_softmax", "_safe_softmax"})
STATISTICS = frozenset({"var_mean", "rsqrt"})
"""What inductor's decompositions leave of a normalisation."""
LIBRARY_NORMS = frozenset(
    "native_layer_norm native_group_norm _fused_rms_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _batch_norm_with_update".split()
)


class CompileProbe:
    """The graphs of one session by AOT id, and which of them ran."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.graphs: dict[tuple[int, str], private.GraphOps] = {}
        self.watching = False
        self._fuses = False
        """Some backend runs kernels of its own, whose insides the op probe does not see."""
        self.ran_in_window: set[int] = set()
        self.operations = 0
        """Forward operations of compiled regions in the traced steps."""
        self.stochastic: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose compiled step draws random bits below what it keeps."""
        self._before: dict[int, int] = {}
        """`id` of a parameter of the optimizer that steps -> its version before the step."""
        self._stepping: Any = None
        """The optimizer that is inside its step."""
        session.bus.on(GraphWalked, self._graph_walked)
        session.bus.on(GraphRecomputed, lambda event: self.ran(event.found.compiled))
        session.bus.on(StepBegan, self._step_began)
        session.bus.on(StepEnded, self._step_ended)

    def install(self) -> list[Callable[[], None]]:
        return [self.session.patch(torch, "compile", self._around)]

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compile(*args: Any, **kwargs: Any) -> Any:
            if self.session.settings.eager:
                self.session.guard.note("torch.compile was off: what it was given ran eagerly (--eager)")
                return original(*args, **{**kwargs, "disable": True})
            made = original(*args, **kwargs)
            self._fuses |= not str(kwargs.get("backend", "inductor")).startswith(("eager", "aot_eager"))
            if not self.watching:
                self.watching = True
                self.session.bus.tell(CompileCalled())
                self.session.guard("torch.compile", self._watch)
            return made

        return compile

    def _watch(self) -> None:
        undo = private.watch_graphs(self._seen)
        if undo is None:
            self.session.guard.note(
                "this torch does not show the graphs of compiled regions: what they hold is unknown"
            )
        else:
            self.session.on_remove(undo)

    def _seen(self, aot_id: int, stage: str, ops: private.GraphOps) -> None:
        self.session.guard("a compiled graph", self._keep, aot_id, stage, ops)

    def _keep(self, aot_id: int, stage: str, ops: private.GraphOps) -> None:
        self.graphs[aot_id, stage] = ops
        if stage == "inference" and self._stepping is not None and self.session.window.phase == OPTIMIZER:
            names = {name for name, _, _ in ops}
            if names & {"randint", "inductor_randint", "random"} and names & {"bitwise_and", "where"}:
                self.stochastic.add(self._stepping)

    # -- regions

    def _graph_walked(self, event: GraphWalked) -> None:
        if event.trains and event.found.compiled:
            self.ran(event.found.compiled)

    def ran(self, ids: Iterable[int]) -> None:
        """A backward goes through these regions."""
        regions = [(aot_id, self.graphs[aot_id, "forward"]) for aot_id in ids if (aot_id, "forward") in self.graphs]
        if not regions:
            return
        held: dict[tuple[Role, Any], list[int]] = {}
        for _, ops in regions:
            for name, dtype, size in ops:
                if dtype not in FLOATING_DTYPES:
                    continue
                for role, how in _roles(name, dtype):
                    tally = held.setdefault((role, how), [0, 0])
                    tally[0] += 1
                    tally[1] += size if role is Role.ACTIVATION else 0
        for (role, dtype), (count, size) in held.items():
            key = ("graph", role, dtype)
            seen = self.session.ledger.get(key) or self.session.ledger.put(
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
        if self.session.window.tracing:
            self.ran_in_window |= {aot_id for aot_id, _ in regions}
            self.operations += sum(len(ops) for _, ops in regions)

    def coverage(self, dispatched: int) -> dict[str, float]:
        """Regions and forward operations that ran compiled in the traced steps, and their share; {} where none did."""
        if not self.operations:
            return {}
        everything = self.operations + dispatched if self._fuses else max(self.operations, dispatched)
        share = self.operations / everything
        return {"regions": len(self.ran_in_window), "operations": self.operations, "share": round(share, 4)}

    # -- a step whose inside is compiled

    def _step_began(self, event: StepBegan) -> None:
        """Remembers the versions of low-precision parameters; compiled code writes to them unseen."""
        self._stepping = event.optimizer
        if self.watching:
            low = (p for p in parameters(event.optimizer) if private.local(p).dtype in LOW)
            self._before = {id(p): p._version for p in low}

    def _step_ended(self, event: StepEnded) -> None:
        """Parameters that changed in a step in which no write to them was seen."""
        self._stepping = None
        if not self._before:
            return
        before, self._before = self._before, {}
        how = "stochastic" if event.optimizer in self.stochastic else "update"
        for parameter in parameters(event.optimizer):
            if parameter._version != before.get(id(parameter), parameter._version):
                self.session.writes.changed_unseen(parameter, how)


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
