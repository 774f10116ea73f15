"""One traced process: makes its parts, in the order in which they listen, puts them in and takes them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import recorder
from . import torch_private as private
from .events import Bus, ModuleFound, OptimizerBuilt, TraceEnded
from .frameworks.account import Frameworks
from .guard import Guard
from .modes import Modes
from .operations import Moment
from .parts import Parts, find
from .patching import Undo, put_in
from .process.ending import Ending
from .process.ledger import Ledger
from .process.peers import Peers
from .process.rankfile import RankFile
from .process.ranks import Ranks
from .process.tracebacks import TracebackTap
from .settings import Settings
from .taps import Tap
from .taps.optimizers import StepTap
from .trackers.births import Births
from .trackers.claims import Account
from .trackers.compiled import Compiled
from .trackers.contents import Contents
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
from .watchers import Watchers

ORDER = (
    Ledger, Window, Ranks, Passes, Steps, Graph, MicroBatches, Contents, Modules, Origins, Flow, Births, LossScale,
    Compiled, Frameworks, Watchers, LongSteps, RankFile, Ending,
)  # fmt: skip
"""In this order they are made, and hear what torch tells; what one of them needs is made before it."""


def start(settings: Mapping[str, Any]) -> Session:
    """Begins to watch this process. Called once, when torch has been imported."""
    recorder.start(settings)
    session = Session(settings)
    session.install()
    return session


class Session:
    """What one process's trace consists of. `remove` leaves torch as it was found."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = Settings(**{name: settings[name] for name in Settings._fields if name in settings})
        modes = Modes()
        self.guard = Guard(modes)
        self.bus = Bus(self.guard)
        peers = Peers(self.settings.peers_folder or self.settings.ranks_folder or "")
        below: dict[type, type] = {Moment: Window, Account: Frameworks}
        self.parts = Parts(self.settings, modes, self.guard, self.bus, peers, for_these=below)
        order: tuple[type, ...] = ORDER
        for kind in order:
            self.parts.get(kind)
        self.rank_file = self.parts.get(RankFile)
        taps = find(Tap.__module__, Tap)
        made = [self.guard.ask(tap.__name__, self.parts.get, tap, otherwise=None) for tap in taps]
        self._taps = [tap for tap in made if tap is not None]
        self._undo: list[Undo] = []
        self._later: Callable[[], None] = lambda: None
        """Takes out what could not be taken out at once."""
        self.bus.on(TraceEnded, lambda event: self.remove(), always=True)

    def install(self) -> None:
        """Puts all taps in."""
        self.guard.open = True
        self.guard.ask("the samples", look_at, self.settings.values, otherwise=None)
        for part in (*self._taps, TracebackTap(), self.parts.get(Ending), self.parts.get(Frameworks)):
            self._undo += self.guard.ask(type(part).__name__, put_in, part.install, otherwise=[])
        self.guard.ask("Dynamo", private.hide_from_dynamo, otherwise=None)

    def introduce(self, modules: Iterable[Any], optimizers: Iterable[Any]) -> None:
        """Tells of modules and optimizers that were there before the trace."""
        for module in modules:
            self.bus.tell(ModuleFound(module))
        for optimizer in optimizers:
            self.bus.tell(OptimizerBuilt(optimizer, None))

    def remove(self) -> None:
        """Takes every hook, patch and mode of ours out again."""
        self._later()
        if not self.guard.open:
            return
        self.guard.open = False
        for undo in reversed(self._undo):
            self.guard.ask("the end of the trace", undo, otherwise=None)
        self._undo.clear()
        self.guard.ask("the end of the trace", self.parts.get(Tensors).forget_all, otherwise=None)
        self.guard.ask("the end of the trace", self.parts.let_go, otherwise=None)
        self._later = self.guard.ask("the end of the trace", self.parts.get(StepTap).remove, otherwise=self._later)
