"""One traced process: installs the probes, asks them at step boundaries, and writes what they saw."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.vocabulary import FLOATING, Cause, Kind, Role, Site, rounds_to
from . import torch_private as private
from .identity import StorageMap
from .ledger import Ledger, Observation
from .probes.autocast import AutocastProbe
from .probes.backward import BackwardProbe, Walk, loss_factor, walk
from .probes.construction import ConstructionProbe
from .probes.ops import DTYPE_NAMES, LOW, OpProbe, Write
from .probes.optimizers import OptimizerProbe, group_tensors, nbytes, parameters, state_tensors
from .probes.scaling import LARGEST_SANE_SCALE, ScalingProbe
from .sites import enclosing_module, user_site
from .window import FORWARD, GRADIENTS, Window

FORMAT = 1
DEFAULTS: Mapping[str, Any] = {
    "skip": 1,
    "steps": 2,
    "attempts": 25,
    "keep_going": False,
    "values": "sample",
    "ranks_folder": None,
    "cwd": "",
}
ADAPTER_NAME = re.compile(r"lora|adapter|ia3|prompt|prefix_enc|dora|loha|lokr|vera", re.IGNORECASE)


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
        self.construction = ConstructionProbe(self)
        self.ops = OpProbe(self)
        self.autocast = AutocastProbe(self)
        self.backward = BackwardProbe(self)
        self.scaling = ScalingProbe(self)
        self.optimizers = OptimizerProbe(self)
        self.status = "watching"
        self.notes: dict[str, None] = {}
        self.float16_gradients_sampled = 0
        self._undo: list[Callable[[], None]] = []
        self._installed = False
        self._parameters: StorageMap[bool] = StorageMap()
        self._gradients: StorageMap[weakref.ref[Any]] = StorageMap()
        self._losses: StorageMap[bool] = StorageMap()
        self._labels: StorageMap[str] = StorageMap()
        self._leaf_batches: dict[int, int] = {}
        self._measured: dict[str, dict[str, float]] = {}
        self._underflow = [0.0, 0.0, 0.0]
        self._running: StorageMap[bool] = StorageMap()
        self._shapes: set[tuple[int, ...]] = set()
        self._last_leaves: list[Tensor] = []
        self._hand_written_step = False
        self._hand_scaling: Observation | None = None
        self._stepped: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._traced: list[int] = []
        self._comm_hook: Site | None = None
        self._final: dict[str, Any] | None = None

    # -- installing and removing

    def install(self) -> None:
        self._installed = True
        atexit.register(self._at_exit)
        for probe in (self.construction, self.autocast, self.scaling, self.backward, self.optimizers):
            self._undo += probe.install()
        if torch.distributed.is_available():
            ddp = torch.nn.parallel.DistributedDataParallel
            self._undo.append(self.patch(ddp, "register_comm_hook", self._around_comm_hook))
        private.hide_from_dynamo(
            module for name, module in list(sys.modules.items()) if name.startswith(__name__.rpartition(".")[0])
        )

    def remove(self) -> None:
        """Takes every hook, patch and mode of ours out again."""
        if not self._installed:
            return
        self._installed = False
        self.ops.remove()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """The program ended before the window did: what was seen last is still written."""
        self.guard("the end of the program", self.ledger.settle)
        self.write()

    def patch(
        self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> Callable[[], None]:
        """Replaces a method by `wrap(method)` and returns the undo, which does nothing if somebody patched it since."""
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
            with torch.no_grad(), self._unseen():
                act(*args)
        except Exception as error:
            self.note_fault(what, error)

    @contextlib.contextmanager
    def _unseen(self) -> Any:
        """Our own tensor arithmetic, kept from the op probe and from the user's autocast."""
        mode = self.ops.mode
        taken = mode is not None and private.take_out(mode)
        try:
            yield
        finally:
            # The act itself may have closed the window.
            if taken and self.ops.mode is mode:
                private.insert_at_bottom(mode)

    def note_fault(self, what: str, error: BaseException) -> None:
        self.notes[f"precaudit could not follow {what}: {type(error).__name__}: {str(error)[:200]}"] = None

    # -- questions the probes ask

    def is_parameter(self, tensor: Tensor) -> bool:
        return self._parameters.get(tensor) is not None

    def is_gradient(self, tensor: Tensor) -> bool:
        return self._gradients.get(tensor) is not None

    def is_loss(self, tensor: Tensor) -> bool:
        return self._losses.get(tensor) is not None

    def built_at(self, made: Any) -> Site | None:
        return self.construction.built_at.get(made)

    def module_name(self, module: Any) -> str:
        return self.construction.module_name(module) if module is not None else ""

    # -- backward

    def before_backward(self, roots: Any, args: Any, accumulates: bool) -> None:
        """One walk of the graph: leaves, dtypes, loss scaling."""
        tensors = [root for root in roots if isinstance(root, Tensor)]
        if accumulates:
            if self._hand_written_step and not self._stepped:
                self._hand_written_step = False
                self.attempted(self, False)
                if not self._installed:
                    return
            self.window.root_backward()
            if (
                not self.ops.mode
                and not self.construction.optimizers
                and self.window.micro_batches > self.settings["skip"]
            ):
                self.ops.install()
        found = walk(tensors)
        numbers = [number for _, number in found.scalars]
        scaler = self.scaling.scaler_of(numbers)
        leaves = list(found.leaves.values())
        self.scaling.backward_from(scaler, leaves)
        self._last_leaves = leaves
        if scaler is not None:
            state = self.scaling.state(scaler)
            state.saw_float16 |= torch.float16 in found.activations
            state.saw_bfloat16 |= torch.bfloat16 in found.activations
        if not accumulates:
            return
        for leaf in leaves:
            if leaf.grad is None:
                self._leaf_batches[id(leaf)] = 0
        self._take_stock_of_graph(found)
        for root in tensors:
            self._losses.set(root, True)
        self._see_loss(tensors, found, scaler)
        gradient = args[0][0] if args and isinstance(args[0], (list, tuple)) and args[0] else None
        self._see_loss_scaling(tensors, found, scaler, gradient)
        if any(torch.is_autocast_enabled(device) for device in {leaf.device.type for leaf in leaves}):
            self.once(("autocast", "backward"), Observation(Kind.BACKWARD, site=user_site(), attrs={"autocast": True}))

    def after_backward(self, accumulates: bool) -> None:
        self.ops.norm_read = False
        if not accumulates:
            return
        for leaf in self._last_leaves:
            if leaf.grad is not None:
                self._leaf_batches[id(leaf)] = self._leaf_batches.get(id(leaf), 0) + 1
                if self._gradients.get(leaf.grad) is None:
                    self._gradients.set(leaf.grad, weakref.ref(leaf))
            if self._parameters.get(leaf) is None:
                self._parameters.set(leaf, True)
                self._shapes.add(tuple(leaf.shape))
        self._last_leaves = []
        if not self.window.attempts and self.window.micro_batches <= 64:
            self.write()

    def once(self, key: Any, observation: Observation) -> Observation:
        """The observation under this key, made now if it is new, counted once more."""
        seen = self.ledger.get(key) or self.ledger.put(key, observation)
        seen.count += 1
        return seen

    def _take_stock_of_graph(self, found: Walk) -> None:
        """Role rows that one graph shows: activations, matmuls, softmax, norms, forward weights."""
        for dtype, (count, size) in found.activations.items():
            self._row(Role.ACTIVATION, dtype, count, size)
        for role, tally in ((Role.MATMUL_COMPUTE, found.matmuls), (Role.SOFTMAX, found.softmaxes)):
            for dtype, count in tally.items():
                self._row(role, dtype, count, 0)
        for dtype, count in found.norms.items():
            inside = torch.float32 if dtype in LOW else dtype
            self._row(Role.NORM_COMPUTATION, inside, count, 0)
        weights: dict[Any, list[int]] = {}
        for key, leaf in found.leaves.items():
            dtype = found.casts_of_leaves.get(key, leaf.dtype)
            held = weights.setdefault(dtype, [0, 0])
            held[0] += 1
            held[1] += leaf.numel() * getattr(dtype, "itemsize", leaf.element_size())
        for dtype, (count, size) in weights.items():
            self._row(Role.FORWARD_WEIGHT, dtype, count, size)

    def _row(self, role: Role, dtype: Any, count: int, size: int) -> None:
        """A role row: the largest seen in one backward."""
        if dtype not in DTYPE_NAMES:
            return
        seen = self.ledger.get(("row", role, dtype)) or self.ledger.put(
            ("row", role, dtype), Observation(Kind.HOLDS, DTYPE_NAMES[dtype], role)
        )
        seen.count, seen.bytes = max(seen.count, count), max(seen.bytes, size)

    def _see_loss(self, roots: list[Tensor], found: Walk, scaler: Any) -> None:
        low = [(dtype, number) for dtype, number in found.scalars if dtype in LOW]
        for root in roots:
            dtype, site = root.dtype, user_site()
            if scaler is not None and self.scaling.state(scaler).losses:
                dtype, _ = self.scaling.state(scaler).losses[-1]
            if low:
                located = [(n, d) for d, n in low if n in self.ops.scalar_sites]
                dtype = low[-1][0]
                if located:
                    number, dtype = min(located)[0], min(located, key=lambda pair: pair[0])[1]
                    site = self.ops.scalar_sites[number] if self.ops.scalar_sites[number].line else site
            detail = f"{root.numel()} elements" if root.numel() != 1 else ""
            key = ("loss", dtype)
            seen = self.once(
                key, Observation(Kind.HOLDS, DTYPE_NAMES.get(dtype, str(dtype)), Role.LOSS, site, detail=detail)
            )
            if dtype in LOW and site is not None and (seen.site is None or self.ops.mode is not None):
                seen.site = site
        self.ops.scalar_sites.clear()

    def _see_loss_scaling(self, roots: list[Tensor], found: Walk, scaler: Any, gradient: Any) -> None:
        """float16 gradients need loss scaling; hand-written scaling shows as a factor now and a division later."""
        tally = found.activations.get(torch.float16)
        if tally is None or scaler is not None or not roots:
            return
        factor = loss_factor(roots[0], gradient)
        if factor is None:
            return
        key = ("gradient", "float16", "unscaled")
        seen = self.once(
            key,
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
            seen.confirmed = True
        else:
            self._hand_scaling = seen

    # -- the optimizer's step

    def before_step(self, optimizer: Any) -> None:
        if not self.window.micro_batches:
            return
        mine = parameters(optimizer)
        for parameter in mine:
            if self._parameters.get(parameter) is None:
                self._parameters.set(parameter, True)
        self.ops.replay.finish(self._measured_other, "other")
        if self._hand_scaling is not None:
            if self.ops.mode is not None and not self.ops.gradients_rescaled:
                self._hand_scaling.confirmed = True
            self._hand_scaling = None
        name = type(optimizer).__name__
        if (
            self.scaling.stepping is None
            and self.ops.mode is not None
            and self.scaling.carries_scale(optimizer)
            and not self.scaling.scale_read
            and not self.ops.gradients_rescaled
        ):
            self.once(
                ("step", "scaled", id(optimizer)),
                Observation(
                    Kind.OPTIMIZER_STEP,
                    site=user_site(),
                    detail=f"{name}.step on gradients that still carry the loss scale",
                    attrs={"gradients": "scaled", "optimizer": name},
                ),
            )
        if any(torch.is_autocast_enabled(device) for device in {p.device.type for p in mine}):
            self.once(
                ("autocast", "step", id(optimizer)),
                Observation(Kind.OPTIMIZER_STEP, site=user_site(), detail=name, attrs={"autocast": True}),
            )
        self._take_stock_of_gradients(optimizer, mine)

    def _take_stock_of_gradients(self, optimizer: Any, mine: list[Tensor]) -> None:
        held: dict[Any, list[int]] = {}
        summed: dict[Any, list[Tensor]] = {}
        for parameter in mine:
            gradient = parameter.grad
            if gradient is None:
                continue
            tally = held.setdefault(gradient.dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(gradient)
            if self._leaf_batches.get(id(parameter), 0) >= 2:
                summed.setdefault(gradient.dtype, []).append(parameter)
            self._leaf_batches[id(parameter)] = 0
        for dtype, (count, size) in held.items():
            self.ledger.put(
                ("gradients", id(optimizer), dtype),
                Observation(Kind.HOLDS, DTYPE_NAMES.get(dtype, str(dtype)), Role.GRADIENT, count=count, bytes=size),
            )
        for dtype, params in summed.items():
            self.ledger.put(
                ("accumulation", id(optimizer), dtype),
                Observation(
                    Kind.HOLDS,
                    DTYPE_NAMES.get(dtype, str(dtype)),
                    Role.GRADIENT_ACCUMULATION,
                    self.built_at(optimizer),
                    self.construction.why_low(params[0]) if dtype in LOW else None,
                    detail=f".grad of {len(params)} parameters, several micro-batches per step",
                    count=len(params),
                    bytes=sum(nbytes(p.grad) for p in params if p.grad is not None),
                ),
            )

    def after_step(self, optimizer: Any) -> None:
        if not self.window.micro_batches:
            return
        self.scaling.last_optimizer_stepped = True
        if self.ops.mode is not None:
            for name, tensor, _ in state_tensors(optimizer):
                if self._labels.get(tensor) is None:
                    self._labels.set(tensor, f"state:{name}")
            for parameter in parameters(optimizer):
                if self._labels.get(parameter) is None:
                    self._labels.set(parameter, "param")
            self.ops.replay.finish(self._measured_step, "optimizer")
        if self.scaling.stepping is None:
            self.attempted(optimizer, False)

    def attempted(self, optimizer: Any, skipped: bool) -> None:
        """A step boundary: numbers are read, the window opens or closes, the rank file is renewed."""
        if self.window.phase == GRADIENTS:  # a skipped step: its hooks did not fire
            self.window.phase = FORWARD
        traced = self.ops.mode is not None
        self._stepped[optimizer] = True
        self.window.attempt(optimizer, skipped, traced)
        if traced:
            self._traced.append(self.window.most_taken if not skipped else self.window.most_taken + 1)
        if optimizer is self:
            self.ops.replay.finish(self._measured_other, "other")
        self.ledger.settle()
        if optimizer is not self:
            self._take_stock_of(optimizer)
        self._see_skipping()
        self.ops.step_boundary()
        self.float16_gradients_sampled = 0
        self._gradients.drop_expired()
        self._losses.drop_expired()
        if traced and self.window.should_close():
            self._close()
        else:
            if not traced and self.window.should_open():
                self.ops.install()
            self.write()

    def _measured_step(self, group: str, tensor: Tensor, numbers: dict[str, float]) -> None:
        self._add(self._labels.get(tensor) or "param", numbers)

    def _measured_other(self, group: str, tensor: Tensor, numbers: dict[str, float]) -> None:
        if self.is_parameter(tensor):
            self._add("param", numbers)
        elif self.is_gradient(tensor):
            self._add("accumulation", numbers)
        else:
            key = (private.storage_key(tensor), tensor.storage_offset(), tensor.numel())
            write = self.ops.writes.get(key)
            if write is not None:
                for name, value in numbers.items():
                    write.numbers[name] = write.numbers.get(name, 0.0) + value

    def _add(self, label: str, numbers: dict[str, float]) -> None:
        total = self._measured.setdefault(label, {})
        for name, value in numbers.items():
            total[name] = total.get(name, 0.0) + value

    # -- stock-taking

    def _take_stock_of(self, optimizer: Any) -> None:
        """Parameters, masters, state and hyperparameters of one optimizer, as they are now."""
        name = type(optimizer).__name__
        site = self.built_at(optimizer)
        mine = [p for p in parameters(optimizer) if p.requires_grad]
        self._take_stock_of_weights(optimizer, name, site, mine)
        held: dict[Any, dict[str, Any]] = {}
        scalars: dict[tuple[str, Any], int] = {}
        for key, tensor, parameter in state_tensors(optimizer):
            tensor = private.local(tensor)
            if not tensor.dtype.is_floating_point:
                continue
            if tensor.numel() <= 1 and (parameter is None or parameter.numel() > 1):
                scalars[(key, tensor.dtype)] = scalars.get((key, tensor.dtype), 0) + 1
                continue
            if self.ops.masters.get(tensor) is not None or "master" in key.lower():
                self._master_in_state(optimizer, tensor)
                continue
            entry = held.setdefault(tensor.dtype, {"names": {}, "owners": set(), "count": 0, "bytes": 0, "why": None})
            entry["names"][key] = None
            entry["count"] += 1
            entry["bytes"] += nbytes(tensor)
            if parameter is not None:
                entry["owners"].add(id(parameter))
                if tensor.dtype in LOW and entry["why"] is None and private.local(parameter).dtype in LOW:
                    entry["why"] = self.construction.why_low(parameter)
        adapters = bool(mine) and all(self._is_adapter(p) for p in mine)
        for dtype, entry in held.items():
            names = ", ".join(sorted(entry["names"])) or "state"
            owners = f" of {len(entry['owners'])}/{len(mine)} parameters" if entry["owners"] else ""
            observation = Observation(
                Kind.HOLDS,
                DTYPE_NAMES[dtype],
                Role.OPTIMIZER_STATE,
                site,
                entry["why"],
                detail=f"{name} {names}{owners}",
                count=entry["count"],
                bytes=entry["bytes"],
                attrs={"optimizer": name, "what": "moment", "adapter_only": adapters},
            )
            if dtype in LOW:
                self._state_evidence(observation, entry["names"])
                self._see_eps(optimizer, observation)
            self.ledger.put(("state", id(optimizer), dtype), observation)
        for key, tensor in group_tensors(optimizer):
            scalars[(key, tensor.dtype)] = scalars.get((key, tensor.dtype), 0) + 1
        for (key, dtype), count in scalars.items():
            if dtype in LOW:
                limit = FLOATING[DTYPE_NAMES[dtype]].max_exact_integer
                counts = f"; stops counting at {limit}" if "step" in key else ""
                self.ledger.put(
                    ("hyperparameter", id(optimizer), key, dtype),
                    Observation(
                        Kind.HOLDS,
                        DTYPE_NAMES[dtype],
                        Role.OPTIMIZER_STATE,
                        site,
                        detail=f"{name} {key}{counts}",
                        count=count,
                        attrs={"what": "hyperparameter", "key": key, "optimizer": name},
                    ),
                )

    def _take_stock_of_weights(self, optimizer: Any, name: str, site: Site | None, mine: list[Tensor]) -> None:
        held: dict[tuple[Role, Any], list[Tensor]] = {}
        for parameter in mine:
            own = private.local(parameter)
            role = self._weight_role(optimizer, parameter, own)
            if role is not None:
                held.setdefault((role, own.dtype), []).append(parameter)
        for role in (Role.MASTER_WEIGHT, Role.ADAPTER_PARAMETER):
            for key in [k for k in self.ledger.observations if k[:3] == ("weights", id(optimizer), role)]:  # type: ignore[index]
                del self.ledger.observations[key]
        for (role, dtype), params in held.items():
            observation = Observation(
                Kind.HOLDS,
                DTYPE_NAMES.get(dtype, str(dtype)),
                role,
                site,
                self.construction.why_low(params[0]) if dtype in LOW else None,
                self.construction.name(params[0]) if len(params) == 1 else "",
                f"{len(params)}/{len(mine)} parameters of {name}",
                len(params),
                sum(nbytes(p) for p in params),
                {"optimizer": name},
            )
            if dtype in LOW:
                self._update_evidence(observation)
            self.ledger.put(("weights", id(optimizer), role, dtype), observation)

    def _weight_role(self, optimizer: Any, parameter: Tensor, own: Tensor) -> Role | None:
        """master_weight unless it is only ever copied from a float32 master; None where that is not known yet."""
        if self._is_adapter(parameter):
            return Role.ADAPTER_PARAMETER
        if own.dtype not in LOW:
            return Role.MASTER_WEIGHT
        writes = self.ops.param_writes.get(private.storage_key(own))
        if writes:
            return Role.MASTER_WEIGHT if "update" in writes else None
        ours = type(optimizer).__module__.startswith("torch.optim")
        return Role.MASTER_WEIGHT if ours else None

    def _is_adapter(self, parameter: Tensor) -> bool:
        return bool(ADAPTER_NAME.search(self.construction.name(parameter)))

    def _master_in_state(self, optimizer: Any, tensor: Tensor) -> None:
        key = ("masters", id(optimizer), tensor.dtype)
        if self.ledger.get((*key, private.storage_key(tensor))) is None:
            self.ledger.put(
                (*key, private.storage_key(tensor)),
                Observation(Kind.HOLDS, DTYPE_NAMES[tensor.dtype], Role.MASTER_WEIGHT, count=1, bytes=nbytes(tensor)),
            )

    def _update_evidence(self, observation: Observation) -> None:
        numbers = self._measured.get("param")
        if not numbers or not numbers["should_move"]:
            return
        observation.evidence["updates_lost"] = numbers["stuck"] / numbers["should_move"]
        if numbers["step2"] > 0 and math.isfinite(numbers["error2"]):
            observation.evidence["applied_update_error"] = math.sqrt(numbers["error2"] / numbers["step2"])

    def _state_evidence(self, observation: Observation, names: Mapping[str, Any]) -> None:
        squares = [n for n in names if re.search(r"sq|square|exp_avg_sq|second|nu$|^v$", n)] or list(names)
        total: dict[str, float] = {}
        for name in squares:
            for key, value in self._measured.get(f"state:{name}", {}).items():
                total[key] = total.get(key, 0.0) + value
        if total.get("should_move"):
            observation.evidence["state_frozen"] = total["stuck"] / total["should_move"]
        numbers = self._measured.get("param")
        if numbers and numbers["should_move"]:
            observation.evidence["updates_lost"] = numbers["stuck"] / numbers["should_move"]

    def _see_eps(self, optimizer: Any, state: Observation) -> None:
        for group in optimizer.param_groups:
            eps = group.get("eps")
            if not isinstance(eps, float) or not eps or group.get("fused"):
                continue
            how = rounds_to(eps, state.dtype)
            if how in ("zero", "subnormal"):
                self.ledger.put(
                    ("eps", id(optimizer), state.dtype),
                    Observation(
                        Kind.EPS,
                        state.dtype,
                        Role.OPTIMIZER_STATE,
                        state.site,
                        state.cause,
                        detail=f"eps={eps:g} of {type(optimizer).__name__} is {how} in {state.dtype}",
                        count=1,
                        attrs={"rounds_to": how, "value": eps},
                    ),
                )

    def _see_skipping(self) -> None:
        for scaler, state in self.scaling.scalers.items():
            site = self.built_at(scaler)
            if not state.uses:
                continue
            scale = getattr(scaler, "_scale", None)
            if isinstance(scale, Tensor):
                self.ledger.put(
                    ("scale", id(scaler)),
                    Observation(Kind.HOLDS, DTYPE_NAMES[scale.dtype], Role.LOSS_SCALE, site, count=1, bytes=4),
                )
            if state.saw_bfloat16 and not state.saw_float16:
                self.ledger.put(
                    ("needless", id(scaler)),
                    Observation(
                        Kind.LOSS_SCALING,
                        "bfloat16",
                        Role.LOSS_SCALE,
                        site,
                        detail="no float16 value lies between the loss and the parameters",
                        count=1,
                        attrs={"needed": False},
                    ),
                )
            reason = ""
            if state.largest_skip_scale > LARGEST_SANE_SCALE:
                reason = "scale-too-large"
            elif state.smallest_skip_scale < 1:
                reason = "scale-below-one"
            elif self.window.consecutive_skips >= 8:
                # A run of skips that ended was the search for the first scale that fits.
                reason = "consecutive"
            self.ledger.observations.pop(("skipped", id(scaler)), None)
            if reason:
                share = self.window.skipped / max(1, self.window.attempts)
                self.ledger.put(
                    ("skipped", id(scaler)),
                    Observation(
                        Kind.SKIPPED_STEPS,
                        site=site,
                        detail=f"{self.window.skipped} of {self.window.attempts} attempts skipped",
                        count=self.window.skipped,
                        attrs={"reason": reason},
                        evidence={"skipped_share": share, "loss_scale": state.largest_skip_scale},
                    ),
                )

    # -- what the op probe reports

    def saw_running_statistics(self, buffer: Tensor, name: str) -> None:
        if self._running.get(buffer) is not None:
            return
        self._running.set(buffer, True)
        module = enclosing_module(torch.nn.Module)
        cause = self.construction.cast_at.get(module) if module is not None and buffer.dtype in LOW else None
        seen = self.once(
            ("running", buffer.dtype),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[buffer.dtype],
                Role.NORM_RUNNING_STATISTICS,
                (cause.site if cause else None) or user_site(),
                cause,
                self.module_name(module),
                "running_mean, running_var, updated in training mode",
            ),
        )
        seen.bytes += nbytes(buffer)

    def saw_gradient_reduction(self, tensor: Tensor, name: str) -> None:
        own_line = user_site()
        seen = self.once(
            ("reduction", tensor.dtype),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[tensor.dtype],
                Role.GRADIENT_REDUCTION,
                self._comm_hook or own_line,
                detail=name.strip("_"),
                attrs={"chosen": "explicit" if self._comm_hook or self.window.phase == 2 else "default"},
            ),
        )
        seen.bytes += nbytes(tensor)

    def saw_clip(self, gradients: list[Tensor]) -> None:
        owners = [ref() for ref in (self._gradients.get(g) for g in gradients) if ref is not None]
        alive = [owner for owner in owners if owner is not None]
        if not self.scaling.any_scaled(alive) or self.scaling.scale_read or self.ops.gradients_rescaled:
            return
        self.once(
            ("clip", "scaled"),
            Observation(
                Kind.CLIP,
                DTYPE_NAMES.get(gradients[0].dtype, ""),
                Role.GRADIENT,
                user_site(),
                detail="the gradients still carried the loss scale",
                attrs={"scaled": True},
            ),
        )

    def gradient_reset(self, gradient: Tensor) -> None:
        owner = self._gradients.get(gradient)
        leaf = owner() if owner is not None else None
        if leaf is not None:
            self._leaf_batches[id(leaf)] = 0

    def wrote_parameter(self) -> None:
        """A loop without an Optimizer wrote to a leaf that has a gradient: its step."""
        if self.window.backward_since_step:
            self._hand_written_step = True

    def add_underflow(self, values: list[float]) -> None:
        zeros, subnormal, nonzero, _ = values
        for index, value in enumerate((zeros, subnormal, nonzero)):
            self._underflow[index] += value

    def _around_comm_hook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def register_comm_hook(ddp: Any, *args: Any, **kwargs: Any) -> Any:
            self._comm_hook = user_site()
            return original(ddp, *args, **kwargs)

        return register_comm_hook

    # -- the end

    def _close(self) -> None:
        self.status = "finished" if self.settings["keep_going"] else "stopped"
        self._final = self.rank_file()
        self.write()
        if self.settings["keep_going"]:
            self.remove()
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # os._exit: no user `except`, `finally` or `atexit` may act on a model whose training was cut short.
        os._exit(0)

    def facts(self) -> list[Observation]:
        """Everything confirmed so far, accumulators and hand-written weights included."""
        out = [seen for seen in self.ledger.observations.values() if seen.confirmed]
        out += self._accumulators()
        if not any(optimizer is not self for optimizer in self._stepped):
            out += self._hand_written_weights()
        for seen in out:
            if seen.kind is Kind.HOLDS and seen.role is Role.GRADIENT and "loss_scaling" in seen.attrs:
                zeros, subnormal, nonzero = self._underflow
                if nonzero:
                    seen.evidence["gradient_underflow"] = subnormal / nonzero
                    seen.evidence["gradient_zeros"] = zeros / (zeros + nonzero)
            if seen.role is Role.GRADIENT_ACCUMULATION and seen.dtype in ("float16", "bfloat16"):
                numbers = self._measured.get("accumulation")
                if numbers and numbers["exact2"] > 0 and math.isfinite(numbers["error2"]):
                    seen.evidence.setdefault("accumulation_loss", math.sqrt(numbers["error2"] / numbers["exact2"]))
        return out

    def _hand_written_weights(self) -> list[Observation]:
        held: dict[Any, list[Tensor]] = {}
        for leaf in self._written_leaves():
            held.setdefault(leaf.dtype, []).append(leaf)
        out = []
        for dtype, leaves in held.items():
            seen = Observation(
                Kind.HOLDS,
                DTYPE_NAMES.get(dtype, str(dtype)),
                Role.MASTER_WEIGHT,
                self.ops.hand_written_at,
                self.construction.why_low(leaves[0]) if dtype in LOW else None,
                detail=f"{len(leaves)} parameters updated by the training loop itself",
                count=len(leaves),
                bytes=sum(nbytes(leaf) for leaf in leaves),
                attrs={"optimizer": "hand-written"},
            )
            if dtype in LOW:
                self._update_evidence(seen)
            out.append(seen)
        return out

    def _written_leaves(self) -> list[Tensor]:
        return [
            leaf
            for leaf in self.ops.written_leaves()
            if "update" in self.ops.param_writes.get(private.storage_key(leaf), set())
        ]

    def _accumulators(self) -> list[Observation]:
        """Memory updated from itself over several backward passes, whatever its name."""
        groups: dict[Any, Observation] = {}
        shapes = self._shapes
        for write in self.ops.writes.values():
            if self._is_accumulator(write):
                self._add_accumulator(groups, write, shapes)
        for line in self.ops.lineage.living():
            if line.generation >= 2:
                site = self.ops.lineage_sites.get(line.start)
                what = "ema" if line.from_parameter else "value"
                key = (Role.ACCUMULATOR, what, line.dtype, line.start)
                seen = groups.setdefault(
                    key,
                    Observation(
                        Kind.HOLDS,
                        DTYPE_NAMES[line.dtype],
                        Role.ACCUMULATOR,
                        site,
                        detail="replaced at each step by a value computed from itself",
                        attrs={"what": what},
                    ),
                )
                seen.count += 1
        return list(groups.values())

    def _is_accumulator(self, write: Write) -> bool:
        return (
            len(write.clock) >= 2
            and write.updates_itself
            and not write.storage.expired()
            and write.dtype in DTYPE_NAMES
            and self._labels_of(write) is None
        )

    def _labels_of(self, write: Write) -> str | None:
        tensor = write.tensor()
        if tensor is None:
            return None
        return self._labels.get(tensor) or ("gradient" if self.is_gradient(tensor) else None)

    def _add_accumulator(self, groups: dict[Any, Observation], write: Write, shapes: set[tuple[int, ...]]) -> None:
        like_parameter = write.shape in shapes
        tensor = write.tensor()
        cause = self.construction.why_low(tensor) if tensor is not None and write.dtype in LOW else None
        role, what, detail = Role.ACCUMULATOR, "value", "updated from itself at each step"
        if "grad" in write.sources and like_parameter:
            role, what, detail = Role.GRADIENT_ACCUMULATION, "buffer", "own buffers that gradients are added to"
        elif "param" in write.sources and like_parameter:
            what, detail = "ema", "averaged weights"
        elif "loss" in write.sources:
            what, detail = "metric", "running sum of the loss"
        site = (cause.site if cause else None) or write.site
        if cause is not None and write.site is not None:
            cause = Cause(cause.text, cause.site)
        key = (role, what, write.dtype, site)
        seen = groups.setdefault(
            key,
            Observation(Kind.HOLDS, DTYPE_NAMES[write.dtype], role, site, cause, detail=detail, attrs={"what": what}),
        )
        seen.count += 1
        size = 1
        for length in write.shape:
            size *= length
        seen.bytes += size * getattr(write.dtype, "itemsize", 4)
        numbers = write.numbers
        if numbers.get("should_move"):
            for name, value in numbers.items():
                seen.attrs[f"_{name}"] = float(seen.attrs.get(f"_{name}", 0.0)) + value  # type: ignore[arg-type]
            stuck, should = float(seen.attrs["_stuck"]), float(seen.attrs["_should_move"])
            error2, exact2 = float(seen.attrs["_error2"]), float(seen.attrs["_exact2"])
            if role is Role.GRADIENT_ACCUMULATION:
                if exact2 > 0 and math.isfinite(error2):
                    seen.evidence["accumulation_loss"] = math.sqrt(error2 / exact2)
            else:
                seen.evidence["updates_lost"] = stuck / should

    def rank_file(self) -> dict[str, Any]:
        """What this process saw, as the plain values of a RankFile."""
        if self._final is not None:
            return self._final
        rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) or 0)
        world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) or 1)
        facts = []
        for seen in self.facts():
            raw = seen.fact().as_json()
            raw["attrs"] = {key: value for key, value in raw["attrs"].items() if not key.startswith("_")}
            facts.append(raw)
        optimizers = sorted({type(o).__name__ for o in self._stepped if o is not self}) or ["none"]
        devices = sorted({p.device.type for o in self._stepped if o is not self for p in parameters(o)})
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
                "micro_batches": self.window.micro_batches,
                "traced_steps": sorted(set(self._traced)),
                "ranks": 1,
                "unattributed_ops": round(self.ops.unattributed / self.ops.ops, 4) if self.ops.ops else 0.0,
                "parameters": sum(len(parameters(o)) for o in self._stepped if o is not self),
                "notes": list(self.notes),
                "overhead": self.window.overhead(),
                "setup": {
                    "torch": torch.__version__,
                    "device": ", ".join(devices),
                    "autocast": self.autocast.setup(),
                    "optimizer": ", ".join(optimizers),
                },
            },
            "facts": facts,
        }

    def _traced_steps(self) -> int:
        """Steps taken while every op was seen."""
        return len({step for step in self._traced if step <= self.window.most_taken})

    def write(self) -> None:
        """Renews this rank's file, atomically: what was seen survives any end of the process."""
        folder = self.settings["ranks_folder"]
        if not folder or not self.window.micro_batches:
            return
        content = self.rank_file()
        path = os.path.join(folder, f"rank-{content['rank']}-{os.getpid()}.json")
        try:
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(path + ".new", path)
        except OSError as error:
            self.note_fault("writing the rank file", error)
