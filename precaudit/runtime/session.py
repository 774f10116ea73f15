"""One traced process: installs the probes, asks them at step boundaries, and writes what they saw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..model.vocabulary import Site
from . import torch_private as private
from .events import Boundary, Bus
from .frameworks import Adapters
from .guard import Guard
from .modes import Modes
from .parts import Parts
from .patching import patch
from .process.ending import Ending
from .process.ledger import Ledger, Observation
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
from .taps.scaling import ScalingProbe
from .taps.tracebacks import TracebackProbe
from .trackers.adapters import Adapted
from .trackers.autocast import Autocast
from .trackers.graph import Graph
from .trackers.lineage import Flow
from .trackers.long_steps import LongSteps
from .trackers.micro_batches import MicroBatches
from .trackers.optimizers import parameters
from .trackers.origins import Origins
from .trackers.passes import Passes
from .trackers.samples import look_at
from .trackers.steps import Steps
from .trackers.tensors import Tensors
from .trackers.unseen_steps import UnseenSteps
from .trackers.window import Window
from .watchers import Watcher, find
from .watchers.births import Births
from .watchers.gradients import Gradients
from .watchers.losses import Losses
from .watchers.non_finite import NonFinite
from .watchers.stock import Stock
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
        self.ledger = Ledger()
        self.bus.on(Boundary, lambda event: self.ledger.settle())
        # Trackers, in the order in which they hear what torch tells.
        self.window = Window(self.bus, self.settings.skip, self.settings.steps, self.settings.attempts)
        self.ending = Ending(self)
        self.parts = Parts(self.settings, self.guard, self.bus, self.ledger, self.window)
        self.tensors = self.parts.get(Tensors)
        self.unseen = self.parts.get(UnseenSteps)
        self.steps = self.parts.get(Steps)
        self.graph = self.parts.get(Graph)
        self.micro_batches = self.parts.get(MicroBatches)
        self.origins = Origins(self)
        self.autocast = self.parts.get(Autocast)
        self.passes = Passes(self)
        self.births = Births(self)
        self.flow = Flow(self)
        self.adapters = Adapters(self)
        self.adapted = Adapted(self)
        self.construction = ConstructionProbe(self)
        self.scaling = ScalingProbe(self)
        self.compiled = CompileProbe(self)
        self.writes = Writes(self)
        self.updates = Updates(self)
        self.gradients = Gradients(self)
        self.losses = Losses(self)
        self.non_finite = NonFinite(self)
        self.stock = Stock(self)
        mine = (self.writes, self.updates, self.gradients, self.losses, self.non_finite, self.stock)
        known: dict[Any, Any] = {type(one): one for one in mine}
        self.watchers: list[Watcher] = [known.get(kind) or self._made(kind) for kind in find()]
        self.watchers.sort(key=lambda one: one is not self.writes)
        self.long_steps = self.parts.get(LongSteps)
        self.ops = OpProbe(self)
        self.peers = Peers(self.settings.ranks_folder or "")
        self.rank_file = RankFile(self)
        self.status = "watching"
        self.step_tap = StepTap(self.bus)
        self._undo: list[Callable[[], None]] = []
        self._later: Callable[[], None] = lambda: None
        """Takes out what could not be taken out at once."""

    def _made(self, kind: Any) -> Any:
        """A watcher; one that has not yet learnt to name what it needs is given the session."""
        return kind(self) if "session" in inspect.signature(kind).parameters else self.parts.get(kind)

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
            self.scaling,
            BackwardTap(self.bus, self.modes, self.step_tap),
            self.step_tap,
            self.compiled,
            SaveTap(self.bus),
            ProcessGroupTap(self.bus, self.guard),
            TracebackProbe(self),
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
        self._later = self.step_tap.remove()

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Has this called when the trace is taken out."""
        self._undo.append(undo)

    # -- observations

    def once(self, key: Any, observation: Observation) -> Observation:
        return self.ledger.once(key, observation)

    # -- questions the probes and watchers ask

    def is_parameter(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).parameter is not None

    def has_shape_of_parameter(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) in self.micro_batches.shapes

    def is_gradient(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).is_gradient

    def is_input(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).is_input

    def built_at(self, made: Any) -> Site | None:
        return self.construction.built_at.get(made)

    def module_name(self, module: Any) -> str:
        return self.construction.module_name(module) if module is not None else ""

    def devices(self) -> list[str]:
        return sorted({p.device.type for o in self.steps.optimizers() for p in parameters(o)})

    def on_accelerator(self) -> bool:
        """Whether anything that is trained lies elsewhere than on the CPU."""
        return self.devices() not in ([], ["cpu"])
