"""One traced process: installs the probes, asks them at step boundaries, and writes what they saw."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..model.vocabulary import Kind, Role, Site
from . import accumulators
from . import torch_private as private
from .adapted import Adapted
from .adapters import Adapters
from .evidence import look_at
from .flow import DTYPE_NAMES, LOW, Flow, trains
from .identity import StorageMap
from .ledger import Ledger, Observation
from .peers import Peers
from .probes.autocast import AutocastProbe
from .probes.backward import BackwardProbe, Walk, loss_factor, walk
from .probes.checkpoints import CheckpointProbe
from .probes.compiled import CompileProbe
from .probes.construction import ConstructionProbe
from .probes.ops import OpMode, OpProbe
from .probes.optimizers import OptimizerProbe, parameters
from .probes.scaling import ScalingProbe
from .probes.tracebacks import TracebackProbe
from .sites import enclosing_module, user_site
from .stock import Stock
from .watchers.births import BirthMode, Births
from .watchers.gradients import Gradients
from .watchers.hollow import Hollow
from .watchers.writes import Writes
from .window import BACKWARD, FORWARD, GRADIENTS, Window

FORMAT = 1
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
UNDERFLOW = 0.3
"""Share of subnormals among non-zero float16 gradients from which on the loss scale is called too small."""


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
        self.ledger = Ledger()
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
        self.hollow = Hollow(self)
        self.stock = Stock(self)
        self.ops = OpProbe(self)
        self.peers = Peers(self.settings["ranks_folder"] or "")
        self.status = "watching"
        self.notes: dict[str, None] = {}
        self.unscaled_float16 = False
        """float16 gradients came from a loss that nothing scaled."""
        self.last_backward: Site | None = None
        self._undo: list[Callable[[], None]] = []
        self._installed = False
        self._birth_mode: BirthMode | None = None
        self._parameters: StorageMap[weakref.ref[Any]] = StorageMap()
        self._gradients: StorageMap[weakref.ref[Any]] = StorageMap()
        self._losses: StorageMap[bool] = StorageMap()
        self._inputs: StorageMap[bool] = StorageMap()
        """Leaves that autograd.grad differentiated beside a loop that trains by .backward()."""
        self._running: StorageMap[bool] = StorageMap()
        self._shapes: set[tuple[int, ...]] = set()
        self._leaf_batches: dict[int, int] = {}
        self._last_leaves: list[Tensor] = []
        self._stepped_over: list[Tensor] = []
        """The leaves whose gradients the step that is going on uses."""
        self._stock_taken = 0
        """The window's clock when their stock was taken."""
        self._accumulates = False
        """Some backward of this run wrote to `.grad`."""
        self._hand_written_step = False
        self._hand_scaling: Observation | None = None
        self._stepped: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self.silent: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call no hook: they are compiled, or live in backward (LOMO)."""
        self.seen_stepping: weakref.WeakSet[Any] = weakref.WeakSet()
        """Optimizers whose steps call the hooks."""
        self._attempting: list[Any] = []
        """Optimizers whose attempts of this step are not yet taken stock of."""
        self._traced: dict[int, bool] = {}
        """Traced step -> whether an update was taken in it."""
        self._final: dict[str, Any] | None = None
        self._alone_since = 0
        """The backward at which this rank met all its peers finished."""
        self._trainer = os.getpid()
        """The process that had the last backward: forks of it inherit everything but the training."""
        self._path = ""

    # -- installing and removing

    def install(self) -> None:
        self._installed = True
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
        package = __name__.rpartition(".")[0]
        private.hide_from_dynamo(module for name, module in list(sys.modules.items()) if name.startswith(package))

    def remove(self) -> None:
        """Takes every hook, patch and mode of ours out again."""
        if not self._installed:
            return
        self._installed = False
        self._stop_births()
        self.ops.remove()
        self.adapters.remove()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        atexit.unregister(self._at_exit)

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Has this called when the trace is taken out."""
        self._undo.append(undo)

    def _at_exit(self) -> None:
        """The program ended before the window did: what was seen last is still written."""
        if os.getpid() != self._trainer:  # a fork of the training process
            return
        self.guard("the end of the program", self.ledger.settle)
        self.write()

    def watch_births(self) -> None:
        """From the first optimizer on: remembers where low-precision tensors are made."""
        if self._birth_mode is None and self.ops.mode is None and not self.window.attempts:
            self._birth_mode = BirthMode(self.births)
            private.insert_at_bottom(self._birth_mode)

    def _stop_births(self) -> None:
        if self._birth_mode is not None:
            private.take_out(self._birth_mode)
            self._birth_mode = None

    def _open(self) -> None:
        self._stop_births()
        self.window.opened()
        # Until now a reset that no hook tells of, `_foreach_zero_` inside a backward, was not seen.
        for key in [key for key in self.ledger.observations if isinstance(key, tuple) and key[0] == "accumulation"]:
            del self.ledger.observations[key]
        self._leaf_batches.clear()
        self.ops.install()

    def restore_modes(self) -> None:
        """Backward gives its thread the modes it began with: what was put in or taken out meanwhile is done again."""
        private.take_out_all((OpMode, BirthMode))
        for mode in (self.ops.mode, self._birth_mode):
            if mode is not None:
                private.insert_at_bottom(mode)

    def patch(
        self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> Callable[[], None]:
        """Replaces a method by `wrap(method)` and returns the undo, which spares what others patched since."""
        own = name in vars(owner)
        original = getattr(owner, name)
        wrapped = functools.wraps(original)(wrap(original))
        setattr(owner, name, wrapped)

        def undo() -> None:
            if vars(owner).get(name) is wrapped:
                if own:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)

        return undo

    def guard(self, what: str, act: Callable[..., Any], *args: Any) -> None:
        """Runs our own code so that a fault in it is a note in the report and nothing more."""
        if not self._installed:
            return
        try:
            with self._unseen(), torch.no_grad():
                act(*args)
        except Exception as error:
            self.note_fault(what, error)

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """Keeps our own tensor arithmetic from our modes, and from the user's, who may count what they see."""
        outer = private.pop_all()
        try:
            with private.no_function_modes():
                yield
        finally:
            # The act itself may have closed the window, or opened it.
            ours = (self.ops.mode, self._birth_mode)
            inner = private.pop_all()
            private.push_all(inner)
            for mode in outer:
                if not isinstance(mode, (OpMode, BirthMode)):
                    private.push_all([mode])
                elif any(mode is own for own in ours) and not any(mode is own for own in inner):
                    private.insert_at_bottom(mode)

    def note_fault(self, what: str, error: BaseException) -> None:
        self.notes[f"precaudit could not follow {what}: {type(error).__name__}: {str(error)[:200]}"] = None

    # -- observations

    def once(self, key: Any, observation: Observation) -> Observation:
        """The observation under this key, made now if it is new, counted once more."""
        seen = self.ledger.get(key) or self.ledger.put(key, observation)
        seen.count += 1
        return seen

    # -- questions the probes and watchers ask

    def is_parameter(self, tensor: Tensor) -> bool:
        return self._parameters.get(tensor) is not None

    def has_shape_of_parameter(self, tensor: Tensor) -> bool:
        return tuple(tensor.shape) in self._shapes

    def parameter_of(self, tensor: Tensor) -> Tensor | None:
        """The parameter whose memory this is: `p.data` and views of p lead to p."""
        found = self._parameters.get(tensor)
        return found() if found is not None else None

    def is_gradient(self, tensor: Tensor) -> bool:
        return self._gradients.get(tensor) is not None or self.adapters.sums.get(tensor) is not None

    def gradient_owner(self, gradient: Tensor) -> weakref.ref[Any] | None:
        """The leaf whose gradient this is."""
        return self._gradients.get(gradient)

    def is_input(self, tensor: Tensor) -> bool:
        return self._inputs.get(tensor) is not None

    def is_loss(self, tensor: Tensor) -> bool:
        return self._losses.get(tensor) is not None

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

    def before_backward(self, roots: Any, args: Any, accumulates: bool) -> None:
        """One walk of the graph: leaves, dtypes, loss scaling."""
        self._trainer = os.getpid()
        self.peers.before_backward()
        tensors = [root for root in roots if isinstance(root, Tensor)]
        create_graph = bool(len(args) > 2 and args[2])
        self.window.clock += 1
        # A loop may train by autograd.grad alone; beside .backward() that is a penalty or a second derivative.
        self._accumulates |= accumulates
        trains = accumulates or not (create_graph or self._accumulates)
        if self._peers_wait_in_vain():
            self._close()
            return
        if trains:
            if self.window.backward_since_step:
                self.adapters.accumulating()
            self._root_backward()
            if not self._installed:
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
        for root in tensors:
            self._losses.set(root, True)
        self._see_loss(tensors, found, scaler)
        gradient = args[0][0] if args and isinstance(args[0], (list, tuple)) and args[0] else None
        self._see_loss_scaling(tensors, found, scaler, gradient)
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
            if not self._installed:
                return
        if self._hand_written_step and not any(o is not self for o in self._stepped):
            self._hand_written_step = False
            self.attempted(self, False)
            if not self._installed:
                return
        if self._attempting:  # not every optimizer had a gradient in that backward
            self._step_over(self.ops.mode is not None)
            if not self._installed:
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
            self._stepped[self] = True
            self._open()

    def after_backward(self, accumulates: bool, results: Any) -> None:
        self.gradients.norm_read = False
        for gradient in results if not accumulates and isinstance(results, tuple) else ():
            if isinstance(gradient, Tensor):
                self.flow.mark(private.unwrapped(gradient), grad=True)
        if not accumulates and self._accumulates:
            for leaf in self._last_leaves:
                if not self.is_parameter(leaf):
                    self._inputs.set(leaf, True)
            return
        for leaf in self._last_leaves:
            if leaf.grad is not None and accumulates:
                self._leaf_batches[id(leaf)] = self._leaf_batches.get(id(leaf), 0) + 1
                if self._gradients.get(private.local(leaf.grad)) is None:
                    self._gradients.set(private.local(leaf.grad), weakref.ref(leaf))
            own = private.local(leaf)
            if self._parameters.get(own) is None:
                self._parameters.set(own, weakref.ref(leaf))
                self._shapes.add(tuple(own.shape))
        self._last_leaves = []
        for optimizer in self.silent:
            self.stock.of_gradients(optimizer, parameters(optimizer), lambda p: self._leaf_batches.get(id(p), 0))
        if not self.window.attempts and self.window.micro_batches <= 64:
            self.write()

    def _see_loss(self, roots: list[Tensor], found: Walk, scaler: Any) -> None:
        """The loss's dtype before any scaling; a low-precision value on its way counts, at the line that made it."""
        low = sorted((number, dtype) for dtype, number in found.scalars if dtype in LOW)
        located = [(n, d) for n, d in low if n in self.flow.scalar_sites and self.flow.scalar_sites[n].line]
        for root in roots:
            dtype, site = root.dtype, user_site()
            if scaler is not None and self.scaling.state(scaler).losses:
                dtype = self.scaling.state(scaler).losses[-1]
            if located:
                dtype, site = located[0][1], self.flow.scalar_sites[located[0][0]]
            elif low:
                dtype = low[0][1]
            detail = f"{root.numel()} elements" if root.numel() != 1 else ""
            name = DTYPE_NAMES.get(dtype, str(dtype))
            seen = self.once(("loss", dtype), Observation(Kind.HOLDS, name, Role.LOSS, site, detail=detail))
            if located:
                seen.site = site
            seen.attrs["device"] = root.device.type
            number = located[0][0] if located else low[0][0] if low else None
            if number in self.flow.cuda_scalars and self.flow.runs_anywhere(seen.site):
                seen.attrs["only_on_cpu"] = True
            else:
                seen.attrs.pop("only_on_cpu", None)
        self.flow.scalar_sites.clear()
        self.flow.cuda_scalars.clear()

    def _see_loss_scaling(self, roots: list[Tensor], found: Walk, scaler: Any, gradient: Any) -> None:
        """float16 gradients need loss scaling; hand-written scaling shows as a factor now and a division later."""
        tally = found.activations.get(torch.float16)
        if tally is None or not roots:
            return
        if scaler is not None or self.adapters.scales_loss():
            self.once(
                ("gradient", "float16", "scaled"),
                Observation(
                    Kind.HOLDS, "float16", Role.GRADIENT, user_site(), attrs={"loss_scaling": "scaled"}, confirmed=False
                ),
            )
            return
        factor = loss_factor(roots[0], gradient)
        if factor is None:
            return
        seen = self.once(
            ("gradient", "float16", "unscaled"),
            Observation(
                Kind.HOLDS,
                "float16",
                Role.GRADIENT,
                user_site(),
                detail=f"{tally[0]} values between the loss and the parameters",
                attrs={"loss_scaling": "none"},
                confirmed=False,
            ),
        )
        if factor <= 1:
            seen.confirmed = self.unscaled_float16 = True
        else:
            self._hand_scaling = seen

    # -- the optimizer's step

    def _tried_out(self, optimizer: Any) -> bool:
        """Whether this step is a framework's own, which trains nothing: before any backward, or by its own account."""
        return not self.window.clock or self.adapters.tries_out(optimizer)

    def before_step(self, optimizer: Any) -> None:
        if self._tried_out(optimizer):
            return
        mine = parameters(optimizer)
        for parameter in mine:
            own = private.local(parameter)
            if self._parameters.get(own) is None:
                self._parameters.set(own, weakref.ref(parameter))
        self.writes.replay.finish(self.measured_other, "other")
        if self._hand_scaling is not None:
            if self.ops.mode is not None and not self.gradients.rescaled:
                self._hand_scaling.confirmed = self.unscaled_float16 = True
            self._hand_scaling = None
        self.scaling.before_step(optimizer)
        self.construction.before_step(optimizer)
        if self._autocasts(mine):
            self.once(
                ("autocast", "step", id(optimizer)),
                Observation(
                    Kind.OPTIMIZER_STEP, site=user_site(), detail=type(optimizer).__name__, attrs={"autocast": True}
                ),
            )
        restored = optimizer not in self._stepped and bool(optimizer.state)
        self.hollow.look(optimizer, [p for p in mine if p.requires_grad], restored)
        self._take_stock_of_gradients(optimizer)
        self.compiled.before_step(mine)
        self.adapters.look(optimizer, mine)

    def _take_stock_of_gradients(self, optimizer: Any) -> None:
        """The optimizer's own gradients, and those of leaves that no optimizer holds: low copies of masters."""
        mine = parameters(optimizer)
        owned = {id(p) for other in (optimizer, *self.construction.optimizers) for p in parameters(other)}
        leaves = [ref() for ref in self._gradients.living()]
        strays = [leaf for leaf in leaves if leaf is not None and id(leaf) not in owned]
        self._stepped_over, self._stock_taken = [*mine, *strays], self.window.clock
        self.stock.of_gradients(optimizer, self._stepped_over, lambda p: self._leaf_batches.get(id(p), 0))

    def after_step(self, optimizer: Any) -> None:
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
            self._stepped.pop(self, None)
            self.window.restart()
        self._stepped[optimizer] = True
        self.window.attempt(optimizer, skipped, traced)
        if self.window.step <= self.settings["skip"]:
            self.window.opened()
        elif traced:
            self._traced[self.window.step] = self._traced.get(self.window.step, False) or not skipped
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
        self._underflow()
        self.flow.forget_expired()
        self.writes.forget_expired()
        self.gradients.step_boundary()
        self._gradients.drop_expired()
        self._losses.drop_expired()
        self._inputs.drop_expired()
        waiting = sum(other not in self._stepped for other in self.construction.optimizers)
        if traced and self.window.should_close(waiting):
            self._close()
            return
        if not traced and self.window.should_open(self.construction.optimizers):
            self._open()
        self.peers.after_step()
        self.write()

    def _measured_step(self, group: str, tensor: Tensor, numbers: dict[str, float]) -> None:
        self.stock.add(self.stock.labels.get(tensor) or "param", numbers)

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

    def _underflow(self) -> None:
        """float16 gradients that are subnormal although the loss was scaled: the scale is too small."""
        share = self.gradients.subnormals / self.gradients.nonzeros if self.gradients.nonzeros else 0.0
        for how in ("unscaled", "scaled"):
            seen = self.ledger.get(("gradient", "float16", how))
            if seen is None or not self.gradients.nonzeros:
                continue
            seen.evidence["gradient_underflow"] = share
            seen.evidence["gradient_zeros"] = self.gradients.zeros / (self.gradients.zeros + self.gradients.nonzeros)
            falling = self.window.stuck  # skipped steps brought the scale down: PA210 says why
            # Without any scaling PA201 says it, with the same number.
            if share >= UNDERFLOW and how == "scaled" and not falling:
                seen.attrs["underflow"] = seen.confirmed = True
            seen.count = 0  # values inside the graph; the role's row counts `.grad` tensors

    # -- what others report

    def saw_running_statistics(self, buffer: Tensor) -> None:
        if self._running.get(buffer) is not None:
            return
        self._running.set(buffer, True)
        module = enclosing_module(torch.nn.Module)
        cause = self.construction.cast_at.get(module) if module is not None and buffer.dtype in LOW else None
        name = DTYPE_NAMES[buffer.dtype]
        declared = self.adapters.declared(Role.NORM_RUNNING_STATISTICS, name) if buffer.dtype in LOW else None
        made_so = declared is not None and declared.dtype == name
        seen = self.once(
            ("running", buffer.dtype),
            Observation(
                Kind.HOLDS,
                name,
                Role.NORM_RUNNING_STATISTICS,
                (declared.site if declared and made_so else cause.site if cause else None) or user_site(),
                cause,
                self.module_name(module),
                attrs={"by": "buffer_dtype"} if made_so else {},
            ),
        )
        seen.bytes += buffer.nbytes

    def saw_gradient_reduction(self, tensor: Tensor, name: str) -> None:
        seen = self.ledger.get(("reduction", tensor.dtype))
        if seen is None:
            seen = self.ledger.put(("reduction", tensor.dtype), self._first_reduction(DTYPE_NAMES[tensor.dtype], name))
        seen.count += 1
        seen.bytes += tensor.nbytes

    def _first_reduction(self, dtype: str, name: str) -> Observation:
        """Who chose this dtype: the declaration for it, else the framework that reduces, else the user's own loop."""
        declared = self.adapters.declared(Role.GRADIENT_REDUCTION, dtype)
        chosen = "explicit" if self.window.phase == GRADIENTS else "default"
        if declared is not None:
            chosen = declared.chosen if declared.dtype in ("", dtype) else "framework"
        return Observation(
            Kind.HOLDS,
            dtype,
            Role.GRADIENT_REDUCTION,
            (declared.site if declared else None) or user_site(),
            detail=f"{name.strip('_')}, {declared.by}" if declared else name.strip("_"),
            attrs={"chosen": chosen},
        )

    def saw_clip(self, gradients: list[Tensor]) -> None:
        owners = [ref() for ref in (self._gradients.get(g) for g in gradients) if ref is not None]
        alive = [owner for owner in owners if owner is not None]
        if not self.scaling.any_scaled(alive) or self.scaling.scale_read or self.gradients.rescaled:
            return
        self.clip_is_scaled(gradients[0], user_site())

    def clip_is_scaled(self, gradient: Tensor, site: Site | None) -> None:
        """A clip at this line met gradients that carry the loss scale."""
        self.once(
            ("clip", "scaled"),
            Observation(
                Kind.CLIP,
                DTYPE_NAMES.get(gradient.dtype, ""),
                Role.GRADIENT,
                site,
                detail="the gradients still carried the loss scale",
                attrs={"scaled": True},
            ),
        )

    def saw_float32_matmul(self) -> None:
        """A float32 matmul that trains, in a run that declared mixed precision."""
        declared = [dtype for dtype in self.autocast.trains_in() if dtype in LOW]
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

    def saw_low_hyperparameter(self, dtype: Any, made: Site | None) -> None:
        """A long-lived 0-d factor in low precision: an EMA decay of 0.999 is 1 in bfloat16."""
        if made is None:
            return
        self.once(
            ("factor", made),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[dtype],
                Role.OPTIMIZER_STATE,
                made,
                detail="a factor that long-lived values are multiplied by",
                attrs={"what": "hyperparameter", "key": "decay"},
            ),
        )

    def gradient_reset(self, gradient: Tensor) -> None:
        owner = self._gradients.get(gradient)
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

    def refused(self, name: str, args: Any, error: BaseException) -> None:
        """torch itself refuses a literal that the tensor's dtype cannot hold."""
        if "cannot be converted to type" not in str(error):
            return
        tensor = next((arg for arg in args if isinstance(arg, Tensor) and arg.dtype in LOW), None)
        value = next((arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)), None)
        if tensor is None:
            return
        said = f"{value:g} in {name}" if value is not None else name
        seen = self.flow.suspect_kind(
            "refused", Kind.CONSTANT, Role.ACTIVATION, tensor.dtype, f"{said}, which torch refuses", overflows=True
        )
        seen.confirmed = True
        self.write()

    # -- the end

    def _around_init_process_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            if not self._installed:
                return original(*args, **kwargs)
            self.peers.join()
            result = original(*args, **kwargs)
            distributed = torch.distributed
            self.guard("the process group", self.peers.join, distributed.get_rank(), distributed.get_world_size(),
                       private.rendezvous())  # fmt: skip
            return result

        return init_process_group

    def _peers_wait_in_vain(self) -> bool:
        """All peers have finished and this rank has gone on since for as many backwards as a window may have steps."""
        if self.settings["keep_going"] or self.window.clock % 4:
            return False
        if not self.peers.everybody_else_is_done():
            self._alone_since = 0
            return False
        self._alone_since = self._alone_since or self.window.clock
        return self.window.clock - self._alone_since >= int(self.settings["attempts"])

    def _close(self) -> None:
        """The window is over: nothing more is traced, and the process stops as soon as no other rank needs it."""
        self.status = "finished"
        self._final = self.rank_file()
        self.write()
        self.remove()
        alone = not self.peers.others()
        between = private.graph_task_id() == -1
        if self.settings["keep_going"]:
            self.peers.window_over(False)
        elif alone or self.peers.window_over(between):
            self._stop()
        else:
            # The process goes on until all can stop: its exceptions stay as they would be without us.
            private.patch_engine(self._around_last_backwards)
            TracebackProbe(self).install()

    def _around_last_backwards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if private.graph_task_id() == -1 and self.peers.before_backward():
                self._stop()
            return original(t_outputs, *args, **kwargs)

        return _engine_run_backward

    def _stop(self) -> NoReturn:
        assert self._final is not None
        self._final["status"] = self.status = "stopped"
        self._final["without"] = sorted(self.peers.without)
        self.write()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.peers.last_words()
        try:
            # As Python's own end would: below a forkserver, DataLoader workers do not see that this process has gone.
            for child in multiprocessing.active_children():
                if child.daemon:
                    child.terminate()
        finally:
            # os._exit: no user `except`, `finally` or `atexit` may act on a model whose training was cut short.
            os._exit(0)

    def facts(self) -> list[Observation]:
        """Everything confirmed so far, accumulators and hand-updated weights included."""
        out = [seen for seen in self.ledger.observations.values() if seen.confirmed]
        out += accumulators.find(self, self._shapes)
        if not any(optimizer is not self for optimizer in self._stepped):
            out += accumulators.hand_updated(self)
        for seen in out:
            if (
                seen.role is Role.GRADIENT_ACCUMULATION
                and seen.attrs.get("what") != "buffer"
                and seen.dtype != "float32"
            ):
                accumulators.summed(seen, self.stock.measured.get("accumulation"))
        out += self.adapters.observations()
        return out + self.adapters.dishonoured(out)

    def rank_file(self) -> dict[str, Any]:
        """What this process saw, as the plain values of a RankFile."""
        if self._final is not None:
            return self._final
        facts = [seen.fact().as_json() for seen in self.facts()]  # first: what fails meanwhile is among the notes
        rank, world = self.peers.me.rank, self.peers.me.world_size
        if rank < 0:  # no process group: what the launcher says
            rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) or 0)
            world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) or 1)
        optimizers = [optimizer for optimizer in self._stepped if optimizer is not self]
        names = sorted({type(optimizer).__name__ for optimizer in optimizers})
        devices = self._devices()
        seen_ops = self.flow.ops
        met = [adapter.title for adapter in self.adapters.met]
        return {
            "format": FORMAT,
            "rank": rank,
            "world_size": world,
            "pid": os.getpid(),
            "status": self.status,
            "steps": self._traced_steps(),
            "coverage": {
                "steps": self._traced_steps(),
                "attempts": self.window.attempts,
                "skipped_steps": self.window.skipped,
                "micro_batches": self.window.micro_batches_inside,
                "traced_steps": sorted(self._traced),
                "ranks": 1,
                "unattributed_ops": round(self.flow.unattributed / seen_ops, 4) if seen_ops else 0.0,
                "compiled": self.compiled.coverage(seen_ops),
                "parameters": sum(len(parameters(optimizer)) for optimizer in optimizers),
                "notes": list(self.notes),
                "not_observed": self._why_not(),
                "overhead": self.window.overhead(),
                "setup": {
                    "torch": torch.__version__,
                    "device": ", ".join(devices),
                    "autocast": self.autocast.setup(),
                    "optimizer": ", ".join(names) or "none",
                    **({"frameworks": ", ".join(met)} if met else {}),
                },
            },
            "facts": facts,
        }

    def _why_not(self) -> dict[str, str]:
        """Roles that were not observed for a reason better than that nothing of the kind ran."""
        rows = {seen.role for seen in self.ledger.observations.values() if seen.kind is Kind.HOLDS and seen.confirmed}
        reasons = {}
        if Role.MASTER_WEIGHT not in rows and Role.ADAPTER_PARAMETER in rows:
            reasons[Role.MASTER_WEIGHT.value] = "only adapters are trained"
        if Role.FORWARD_WEIGHT not in rows and self.compiled.ran_in_window:
            reasons[Role.FORWARD_WEIGHT.value] = "compiled regions do not tell how they read weights; --eager does"
        return reasons

    def _devices(self) -> list[str]:
        return sorted({p.device.type for o in self._stepped if o is not self for p in parameters(o)})

    def on_accelerator(self) -> bool:
        """Whether anything that is trained lies elsewhere than on the CPU."""
        return self._devices() not in ([], ["cpu"])

    def _traced_steps(self) -> int:
        """Steps taken while every op was seen."""
        return sum(self._traced.values())

    def write(self) -> None:
        """Renews this rank's file, atomically: what was seen survives any end of the process."""
        folder = self.settings["ranks_folder"]
        if not folder or not (self.window.micro_batches or self.ledger.observations):
            return
        content = self.rank_file()
        path = os.path.join(folder, f"rank-{content['rank']}-{os.getpid()}.json")
        try:
            if self._path not in ("", path):  # its rank was not known until now
                os.unlink(self._path)
            self._path = path
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".new", path)
        except OSError as error:
            self.note_fault("writing the rank file", error)
