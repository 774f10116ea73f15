"""One traced process: makes its parts, in the order in which they listen, puts them in and takes them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import torch_private as private
from .events import Boundary, Bus
from .exact.step import ExactStep
from .frameworks import Adapters
from .guard import Guard
from .modes import Modes
from .parts import Parts
from .patching import patch
from .process.ending import Ending
from .process.ledger import Ledger
from .process.peers import Peers
from .process.rankfile import RankFile
from .settings import Settings
from .taps.autocast import AutocastTap
from .taps.backward import BackwardTap
from .taps.checkpoints import SaveTap
from .taps.compiled import CompileProbe
from .taps.construction import ConstructionProbe
from .taps.ops import OpProbe
from .taps.optimizers import StepTap
from .taps.process_group import ProcessGroupTap
from .taps.scaling import ScalingTap
from .taps.tracebacks import TracebackTap
from .trackers.adapters import Adapted
from .trackers.autocast import Autocast
from .trackers.claims import Accounts
from .trackers.contents import Contents
from .trackers.entering import Entering
from .trackers.graph import Graph
from .trackers.lineage import Flow
from .trackers.long_steps import LongSteps
from .trackers.loss_scale import LossScale
from .trackers.micro_batches import MicroBatches
from .trackers.modules import Modules
from .trackers.origins import Origins
from .trackers.passes import Passes
from .trackers.samples import look_at
from .trackers.steps import Steps
from .trackers.tensors import Tensors
from .trackers.window import Window
from .watchers import Watcher, find
from .watchers.births import Births
from .watchers.updates import Updates
from .watchers.writes import Writes


def start(settings: Mapping[str, Any]) -> Session:
    """Begins to watch this process. Called once, when torch has been imported."""
    session = Session(settings)
    session.install()
    return session


class Session:
    """What one process's trace consists of. `remove` leaves torch as it was found."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = Settings(**{name: settings[name] for name in Settings._fields if name in settings})
        self.modes = Modes()
        self.guard = Guard(self.modes)
        self.bus = Bus(self.guard)
        self.patch = patch
        self.parts = Parts(self.settings, self.modes, self.guard, self.bus)
        get = self.parts.get
        self.ledger = get(Ledger)
        self.bus.on(Boundary, lambda event: self.ledger.settle())
        # Trackers, in the order in which they hear what torch tells.
        self.window = get(Window)
        self.ending = Ending(self)
        self.tensors, self.steps = get(Tensors), get(Steps)
        get(Graph)
        self.micro_batches = get(MicroBatches)
        get(Contents)
        self.accounts, self.modules = get(Accounts), get(Modules)
        self.origins, self.autocast, self.births, self.flow = get(Origins), get(Autocast), get(Births), get(Flow)
        self.entering, self.passes = get(Entering), get(Passes)
        self.adapted = get(Adapted)
        self.adapters = Adapters(self)
        self.construction = ConstructionProbe(self)
        self.loss_scale = get(LossScale)
        self.compiled = CompileProbe(self)
        self.writes = get(Writes)
        self.updates = get(Updates)
        self.watchers: list[Watcher] = sorted(map(get, find()), key=lambda one: one is not self.writes)
        self.long_steps = get(LongSteps)
        self.exact = get(ExactStep)
        self.ops = OpProbe(self)
        self.births.unmounted = self.ops.unmounted
        self.peers = Peers(self.settings.ranks_folder or "")
        self.rank_file = RankFile(self)
        self.status = "watching"
        self.step_tap = StepTap(self.bus)
        self._undo: list[Callable[[], None]] = []
        self._later: Callable[[], None] = lambda: None
        """Takes out what could not be taken out at once."""

    # -- installing and removing

    def install(self) -> None:
        self.guard.open = True
        look_at(self.settings.values)
        self.ledger.measures = self.settings.values != "off"
        if not self.ledger.measures:
            self.guard.note("whether losses, gradients and parameters are finite was not observed (--values off)")
        for probe in (
            self.construction,
            AutocastTap(self.bus),
            ScalingTap(self.bus, self.guard),
            BackwardTap(self.bus, self.modes, self.step_tap),
            self.step_tap,
            self.compiled,
            SaveTap(self.bus),
            ProcessGroupTap(self.bus, self.guard),
            TracebackTap(),
            self.ending,
        ):
            self._undo += probe.install()
        self._undo += self.adapters.install()
        private.hide_from_dynamo()

    def remove(self) -> None:
        """Takes every hook, patch and mode of ours out again."""
        self._later()
        if not self.guard.open:
            return
        self.guard.open = False
        self.births.stop()
        self.ops.remove()
        self.adapters.remove()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self.tensors.forget_all()
        self._later = self.step_tap.remove()

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Has this called when the trace is taken out."""
        self._undo.append(undo)
