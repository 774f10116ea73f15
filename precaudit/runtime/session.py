"""One traced process: installs the probes, asks them at step boundaries, and writes what they saw."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.vocabulary import Kind, Site
from . import torch_private as private
from .events import BackwardBegan, BackwardEnded, Bus, StepBegan, StepEnded
from .frameworks import Adapters
from .guard import Guard
from .modes import Modes
from .patching import patch
from .process.ending import Ending
from .process.ledger import Ledger, Observation
from .process.peers import Peers
from .process.rankfile import RankFile
from .sites import user_site
from .taps.autocast import AutocastProbe
from .taps.backward import BackwardProbe, walk
from .taps.checkpoints import CheckpointProbe
from .taps.compiled import CompileProbe
from .taps.construction import ConstructionProbe
from .taps.ops import OpProbe
from .taps.optimizers import OptimizerProbe, parameters
from .taps.scaling import ScalingProbe
from .taps.tracebacks import TracebackProbe
from .trackers.adapters import Adapted
from .trackers.lineage import Flow, trains
from .trackers.replay import look_at
from .trackers.tensors import Tensors
from .trackers.window import BACKWARD, FORWARD, GRADIENTS, Window
from .watchers.births import BirthMode, Births
from .watchers.gradients import Gradients
from .watchers.hollow import Hollow
from .watchers.losses import Losses
from .watchers.stock import Stock
from .watchers.writes import Writes

DEFAULTS: Mapping[str, Any] = {
    "skip": 1,
    "steps": 2,
    "attempts": 25,
    "keep_going": False,
    "values": "sample",
    "eager": False,
    "ranks_folder": None,
    "cwd": "",
}


def start(settings: Mapping[str, Any]) -> Session:
    """Begins to watch this process. Called once, when torch has been imported."""
    session = Session(settings)
    session.install()
    return session


class Session:
    """What one process's trace consists of. `remove` leaves torch as it was found."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = {**DEFAULTS, **settings}
        self.window = Window(self.settings["skip"], self.settings["steps"], self.settings["attempts"])
        self.modes = Modes()
        self.guard = Guard(self.modes)
        self.bus = Bus(self.guard)
        self.ledger = Ledger()
        self.tensors = Tensors()
        self.births = Births(self)
        self.flow = Flow(self)
        self.adapters = Adapters(self)
        self.adapted = Adapted(self)
        self.construction = ConstructionProbe(self)
        self.autocast = AutocastProbe(self)
        self.backward = BackwardProbe(self)
        self.scaling = ScalingProbe(self)
        self.optimizers = OptimizerProbe(self)
        self.compiled = CompileProbe(self)
        self.checkpoints = CheckpointProbe(self)
        self.writes = Writes(self)
        self.gradients = Gradients(self)
        self.losses = Losses(self)
        self.hollow = Hollow(self)
        self.stock = Stock(self)
        self.ops = OpProbe(self)
        self.peers = Peers(self.settings["ranks_folder"] or "")
        self.rank_file = RankFile(self)
        self.ending = Ending(self)
        self.status = "watching"
        self.notes = self.guard.notes
        self.note_fault = self.guard.fault
        self.patch = patch
        self.last_backward: Site | None = None
        self._undo: list[Callable[[], None]] = []
        self.later: Callable[[], None] = lambda: None
        """What could not be taken out at once, done now."""
        self._birth_mode: BirthMode | None = None
        self.shapes: set[tuple[int, ...]] = set()
        self._leaf_batches: dict[int, int] = {}
        self._last_leaves: list[Tensor] = []
        self._stepped_over: list[Tensor] = []
        """The leaves whose gradients the step that is going on uses."""
        self._stock_taken = 0
        """The window's clock when their stock was taken."""
        self._differentiates = False
        """The last backward was autograd.grad with a graph of its own."""
        self._accumulates = False
        """Some backward of this run wrote to `.grad`."""
        self._hand_written_step = False
        self.stepped: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self.silent: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call no hook: they are compiled, or live in backward (LOMO)."""
        self.seen_stepping: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call the hooks."""
        self._attempting: list[Any] = []
        """Optimizers whose attempts of this step are not yet taken stock of."""
        self.traced: dict[int, bool] = {}
        """Traced step -> whether an update was taken in it."""
        self._trainer = os.getpid()
        """The process that had the last backward: forks of it inherit everything but the training."""

    # -- installing and removing

    def install(self) -> None:
        self.guard.open = True
        self._subscribe()
        look_at(self.settings["values"])
        self.ledger.measures = self.settings["values"] != "off"
        atexit.register(self._at_exit)
        for probe in (
            self.construction,
            self.autocast,
            self.scaling,
            self.backward,
            self.optimizers,
            self.compiled,
            self.checkpoints,
            TracebackProbe(self),
        ):
            self._undo += probe.install()
        self._undo += self.adapters.install()
        self._undo.append(private.patch_init_process_group(self._around_init_process_group))
        private.hide_from_dynamo()

    def remove(self) -> None:
        """Takes every hook, patch and mode of ours out again."""
        self.later()
        if not self.guard.open:
            return
        self.guard.open = False
        self._stop_births()
        self.ops.remove()
        self.adapters.remove()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self.later = self.optimizers.remove()
        atexit.unregister(self._at_exit)

    def _subscribe(self) -> None:
        self.bus.on(BackwardBegan, self.before_backward)
        self.bus.on(BackwardEnded, self.after_backward)
        self.bus.on(StepBegan, self.before_step)
        self.bus.on(StepEnded, self.after_step)

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Has this called when the trace is taken out."""
        self._undo.append(undo)

    def _at_exit(self) -> None:
        """The program ended before the window did: what was seen last is still written."""
        if os.getpid() != self._trainer:  # a fork of the training process
            return
        self.guard("the end of the program", self.ledger.settle)
        self.rank_file.write()

    def watch_births(self) -> None:
        """From the first optimizer on: remembers where low-precision tensors are made."""
        if self._birth_mode is None and self.ops.mode is None and not self.window.attempts:
            self._birth_mode = BirthMode(self.births)
            self.modes.put_in(self._birth_mode)

    def _stop_births(self) -> None:
        if self._birth_mode is not None:
            self.modes.take_out(self._birth_mode)
            self._birth_mode = None

    def _open(self) -> None:
        self._stop_births()
        self.window.opened()
        # Until now a reset that no hook tells of, `_foreach_zero_` inside a backward, was not seen.
        for key in [key for key in self.ledger.observations if isinstance(key, tuple) and key[0] == "accumulation"]:
            del self.ledger.observations[key]
        self._leaf_batches.clear()
        self.ops.install()

    def _around_init_process_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            if not self.guard.open:
                return original(*args, **kwargs)
            self.peers.join()
            result = original(*args, **kwargs)
            distributed = torch.distributed
            self.guard("the process group", self.peers.join, distributed.get_rank(), distributed.get_world_size(),
                       private.rendezvous())  # fmt: skip
            return result

        return init_process_group

    # -- observations

    def once(self, key: Any, observation: Observation) -> Observation:
        """The observation under this key, made now if it is new, counted once more."""
        seen = self.ledger.get(key) or self.ledger.put(key, observation)
        seen.count += 1
        return seen

    # -- questions the probes and watchers ask

    def is_parameter(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).parameter is not None

    def has_shape_of_parameter(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) in self.shapes

    def parameter_of(self, tensor: Tensor) -> Tensor | None:
        """The parameter whose memory this is: `p.data` and views of p lead to p."""
        found = self.tensors.of(tensor).parameter
        return found() if found is not None else None

    def is_gradient(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).is_gradient

    def gradient_owner(self, gradient: Tensor) -> weakref.ref[Any] | None:
        """The leaf whose gradient this is."""
        return self.tensors.of(gradient).gradient_of

    def is_input(self, tensor: Tensor) -> bool:
        return self.tensors.of(tensor).is_input

    def parameter_version(self, parameter: Tensor) -> int:
        """Rises with every in-place write the trace saw to this parameter; never 0."""
        return self.version_of_key(private.storage_key(parameter))

    def version_of_key(self, key: int) -> int:
        return self.writes.versions.get(key, 1)

    def built_at(self, made: Any) -> Site | None:
        return self.construction.built_at.get(made)

    def module_name(self, module: Any) -> str:
        return self.construction.module_name(module) if module is not None else ""

    # -- backward

    def before_backward(self, event: BackwardBegan) -> None:
        """One walk of the graph: leaves, dtypes, loss scaling."""
        tensors, accumulates, create_graph = event.roots, event.accumulates, event.creates_graph
        self._trainer = os.getpid()
        self.peers.before_backward()
        self.window.clock += 1
        # A loop may train by autograd.grad alone; beside .backward() that is a penalty or a second derivative.
        self._accumulates |= accumulates
        self._differentiates = create_graph and not accumulates
        trains = accumulates or not (create_graph or self._accumulates)
        if self.ending.peers_wait_in_vain():
            self.ending.close()
            return
        if trains:
            if self.window.backward_since_step:
                self.adapters.accumulating()
            self._root_backward()
            if not self.guard.open:
                return
        found = walk(tensors)
        scaler = self.scaling.scaler_of([number for _, number in found.scalars])
        leaves = list(found.leaves.values())
        self.scaling.backward_from(scaler, leaves, found, create_graph and not accumulates)
        self._last_leaves = leaves
        if found.low_logsumexp:
            self.flow.confirm_all("logsumexp", feeds="loss")
        if not trains:
            return
        self.last_backward = user_site()
        for leaf in leaves:
            if leaf.grad is None:
                self._leaf_batches[id(leaf)] = 0
        self.stock.of_graph(found)
        if found.compiled:
            self.compiled.ran(found.compiled)
        self.losses.saw(tensors, found, scaler)
        self.losses.saw_scaling(tensors, found, scaler, event.gradient)
        if self._autocasts(leaves):
            self.once(("autocast", "backward"), Observation(Kind.BACKWARD, site=user_site(), attrs={"autocast": True}))

    def _autocasts(self, tensors: list[Tensor]) -> bool:
        """Whether the script left autocast on, on a device where these are."""
        on = any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors})
        return on and self.autocast.users_own()

    def _root_backward(self) -> None:
        for optimizer in self.optimizers.steps_unseen():
            self.silent.add(optimizer)
            self.window.steps_unseen = True
            for parameter in parameters(optimizer):
                self._leaf_batches[id(parameter)] = 0
            self.writes.replay.finish(self.measured_other, "other")
            self.stock.label(optimizer)
            self.attempted(optimizer, False)
            if not self.guard.open:
                return
        if self._hand_written_step and not any(o is not self for o in self.stepped):
            self._hand_written_step = False
            self.attempted(self, False)
            if not self.guard.open:
                return
        if self._attempting:  # not every optimizer had a gradient in that backward
            self._step_over(self.ops.mode is not None)
            if not self.guard.open:
                return
        self.window.root_backward()
        if self.ops.mode:
            return
        if self.window.attempts:
            if self.window.round >= self.settings["skip"]:
                self._open()
        elif not self.construction.optimizers and self.window.micro_batches > self.settings["skip"]:
            # No Optimizer: the first step went by before anybody could know that it was one.
            self.window.round = self.settings["skip"]
            self.window.taken.setdefault(self, self.settings["skip"])
            self.stepped[self] = True
            self._open()

    def after_backward(self, event: BackwardEnded) -> None:
        accumulates, results = event
        self.gradients.norm_read = False
        for gradient in results if not accumulates and isinstance(results, tuple) else ():
            if isinstance(gradient, Tensor):
                self.flow.mark(private.unwrapped(gradient), grad=True)
        if not accumulates and (self._accumulates or self._differentiates):
            for leaf in self._last_leaves:
                if not self.is_parameter(leaf) and not isinstance(leaf, torch.nn.Parameter):
                    self.tensors.learn(leaf).is_input = True
            return
        for leaf in self._last_leaves:
            if leaf.grad is not None and accumulates:
                self._leaf_batches[id(leaf)] = self._leaf_batches.get(id(leaf), 0) + 1
                gradient = self.tensors.learn(private.local(leaf.grad))
                if gradient.gradient_of is None:
                    gradient.gradient_of = weakref.ref(leaf)
            own = private.local(leaf)
            if self.tensors.of(own).parameter is None:
                self.tensors.learn(own).parameter = weakref.ref(leaf)
                self.shapes.add(tuple(own.shape))
        self._last_leaves = []
        for optimizer in self.silent:
            self.stock.of_gradients(optimizer, parameters(optimizer), lambda p: self._leaf_batches.get(id(p), 0))
        if not self.window.attempts and self.window.micro_batches <= 64:
            self.rank_file.write()

    # -- the optimizer's step

    def _tried_out(self, optimizer: Any) -> bool:
        """Whether this step is a framework's own, which trains nothing: before any backward, or by its own account."""
        return not self.window.clock or self.adapters.tries_out(optimizer)

    def before_step(self, event: StepBegan) -> None:
        (optimizer,) = event
        if self._tried_out(optimizer):
            return
        mine = parameters(optimizer)
        for parameter in mine:
            known = self.tensors.learn(private.local(parameter))
            if known.parameter is None:
                known.parameter = weakref.ref(parameter)
        self.writes.replay.finish(self.measured_other, "other")
        self.losses.before_step()
        self.scaling.before_step(optimizer)
        self.construction.before_step(optimizer)
        if self._autocasts(mine):
            self.once(
                ("autocast", "step", id(optimizer)),
                Observation(
                    Kind.OPTIMIZER_STEP, site=user_site(), detail=type(optimizer).__name__, attrs={"autocast": True}
                ),
            )
        restored = optimizer not in self.stepped and bool(optimizer.state)
        self.hollow.look(optimizer, [p for p in mine if p.requires_grad], restored)
        self._take_stock_of_gradients(optimizer)
        self.compiled.before_step(mine)
        self.adapters.look(optimizer, mine)

    def _take_stock_of_gradients(self, optimizer: Any) -> None:
        """The optimizer's own gradients, and those of leaves that no optimizer holds: low copies of masters."""
        mine = parameters(optimizer)
        owned = {id(p) for other in (optimizer, *self.construction.optimizers) for p in parameters(other)}
        owners = [known.gradient_of for known in self.tensors.living()]
        leaves = [ref() for ref in owners if ref is not None]
        strays = [leaf for leaf in leaves if leaf is not None and id(leaf) not in owned and not self.is_input(leaf)]
        self._stepped_over, self._stock_taken = [*mine, *strays], self.window.clock
        self.stock.of_gradients(optimizer, self._stepped_over, lambda p: self._leaf_batches.get(id(p), 0))

    def after_step(self, event: StepEnded) -> None:
        (optimizer,) = event
        if self._tried_out(optimizer):
            return
        if self.window.clock != self._stock_taken:  # the step's closure had a backward of its own, the last of the sum
            self._take_stock_of_gradients(optimizer)
        for parameter in self._stepped_over:
            self._leaf_batches[id(parameter)] = 0
        self._stepped_over = []
        self.scaling.last_optimizer_stepped = True
        self.seen_stepping.add(optimizer)
        self.compiled.after_step(optimizer)
        if self.ops.mode is not None:
            self.stock.label(optimizer)
            self.writes.replay.finish(self._measured_step, "optimizer")
        if self.scaling.stepping is None:
            self.attempted(optimizer, False)

    def attempted(self, optimizer: Any, skipped: bool) -> None:
        """A step boundary: numbers are read, the window opens or closes, the rank file is renewed."""
        if self.window.phase == GRADIENTS:  # a skipped step: its hooks did not fire
            self.window.phase = FORWARD
        traced = self.ops.mode is not None
        if optimizer is not self and self.window.taken.pop(self, None) is not None:
            self.stepped.pop(self, None)
            self.window.restart()
        self.stepped[optimizer] = True
        self.window.attempt(optimizer, skipped, traced)
        if self.window.step <= self.settings["skip"]:
            self.window.opened()
        elif traced:
            self.traced[self.window.step] = self.traced.get(self.window.step, False) or not skipped
        if optimizer is self:
            self.writes.replay.finish(self.measured_other, "other")
        else:
            self._attempting.append(optimizer)
        # Optimizers that step inside one backward are read and written once, after the last of them.
        if self.window.phase != BACKWARD or self.window.everybody_attempted(self.construction.optimizers):
            self._step_over(traced)

    def _step_over(self, traced: bool) -> None:
        self.ledger.settle()
        for optimizer in self._attempting:
            self.stock.of_optimizer(optimizer)
        self._attempting.clear()
        self.scaling.take_stock()
        self.autocast.take_stock()
        self.gradients.take_stock()
        self.writes.forget_expired()
        self.gradients.step_boundary()
        self.tensors.forget_expired()
        self.flow.step_boundary()
        waiting = sum(other not in self.stepped for other in self.construction.optimizers)
        if traced and self.window.should_close(waiting):
            self.ending.close()
            return
        if not traced and self.window.should_open(self.construction.optimizers):
            self._open()
        self.peers.after_step()
        self.rank_file.write()

    def _measured_step(self, group: str, tensor: Tensor, numbers: dict[str, float]) -> None:
        """Only parameters and state are counted: of a temporary (`denom.add_(eps)`) nobody asks what it lost."""
        known = self.tensors.of(tensor)
        if known.slot is not None:
            self.stock.add(f"state:{known.slot}", numbers)
        elif known.parameter is not None:
            self.stock.add("param", numbers)

    def measured_other(self, group: str, tensor: Tensor, numbers: dict[str, float]) -> None:
        if self.is_parameter(tensor):
            self.stock.add("param", numbers)
        elif self.is_gradient(tensor):
            self.stock.add("accumulation", numbers)
        else:
            write = self.writes.places.get((private.storage_key(tensor), tensor.storage_offset(), tensor.numel()))
            if write is not None:
                for name, value in numbers.items():
                    write.numbers[name] = write.numbers.get(name, 0.0) + value

    # -- what others report

    def gradient_reset(self, gradient: Tensor) -> None:
        owner = self.tensors.of(gradient).gradient_of
        leaf = owner() if owner is not None else None
        if leaf is not None:
            self.gradient_reset_of(leaf)

    def gradient_reset_of(self, leaf: Tensor) -> None:
        """What `.grad` of this leaf holds is no sum of micro-batches, or is told of by another."""
        self._leaf_batches[id(leaf)] = 0

    def forward_begins(self, args: Any) -> bool:
        """Whether an op outside no_grad, after backward, is of the next forward pass: the step told nobody of its end.

        After a hand-written step it begins with what gradients flow through; `p.data` is updated outside no_grad too.
        """
        if self._hand_written_step and trains(args):
            self.window.phase = FORWARD
            return True
        return self.window.steps_unseen

    def wrote_parameter(self) -> None:
        """A loop without an Optimizer wrote to a leaf that has a gradient: its step."""
        if self.window.backward_since_step:
            self._hand_written_step = True

    def devices(self) -> list[str]:
        return sorted({p.device.type for o in self.stepped if o is not self for p in parameters(o)})

    def on_accelerator(self) -> bool:
        """Whether anything that is trained lies elsewhere than on the CPU."""
        return self.devices() not in ([], ["cpu"])
