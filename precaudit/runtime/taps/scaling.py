"""Sees loss scaling: what GradScaler scaled, unscaled, stepped, skipped and updated, in which order.

Known limitations: a scaler that is not a GradScaler is seen only by what it does to the loss and the gradients.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import Cause, Kind, Role, Site
from .. import torch_private as private
from ..events import Attempted, Boundary, RestBegan, ScalerStepBegan, ScalerStepEnded, StepBegan
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.graph import GraphRecomputed, GraphWalked, Walk
from ..trackers.lineage import DTYPE_NAMES

if TYPE_CHECKING:
    from ..session import Session
    from ..trackers.window import Window

LARGEST_SANE_SCALE = 2.0**24
LONGEST_SANE_INTERVAL = 1_000_000
"""Steps between two growths; past this the scale is fixed for all practical purposes. The default is 2,000."""


@dataclass
class Skips:
    """The loss scales at which steps were skipped."""

    largest: float = 0.0
    smallest: float = float("inf")

    def at(self, scale: float) -> None:
        self.largest, self.smallest = max(self.largest, scale), min(self.smallest, scale)

    def observation(self, window: Window, site: Site | None) -> Observation | None:
        """What is to be said of skipping that is more than the search for a first scale."""
        if self.largest > LARGEST_SANE_SCALE:
            reason = "scale-too-large"
        elif self.smallest < 1:
            reason = "scale-below-one"
        elif window.stuck:
            reason = "consecutive"
        else:
            return None
        return Observation(
            Kind.SKIPPED_STEPS,
            site=site,
            detail=f"{window.skipped} of {window.attempts} attempts skipped",
            count=window.skipped,
            attrs={"reason": reason},
            evidence={"skipped_share": window.skipped / max(1, window.attempts), "loss_scale": self.largest},
        )


@dataclass
class ScalerState:
    """What one GradScaler did so far."""

    generation: int = 0
    """Rises with every update."""
    last_update: Site | None = None
    scaled_nodes: set[int] = field(default_factory=set)
    """Autograd sequence numbers of the losses it scaled."""
    losses: list[Any] = field(default_factory=list)
    """The dtypes of the losses it was given."""
    uses: int = 0
    saw_float16: bool = False
    saw_bfloat16: bool = False
    unscaled: set[int] = field(default_factory=set)
    """Parameters whose gradients were unscaled since the last update."""
    skips: Skips = field(default_factory=Skips)


class ScalingProbe:
    """Patches the methods of GradScaler and of its subclasses that have their own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scalers: weakref.WeakKeyDictionary[Any, ScalerState] = weakref.WeakKeyDictionary()
        self.tensors = session.tensors
        self.scale_read = False
        """The script asked for the scale since backward: it may unscale by hand."""
        self.stepping: Any = None
        """The scaler whose step is running."""
        self._undo: list[Callable[[], None]] = []
        self._patched: set[type] = set()
        self._running: set[tuple[int, str]] = set()
        """Methods in progress, by scaler."""
        self._penalty: Observation | None = None
        """Gradients of a scaled loss were taken for use in another loss, and the scale was not read since."""
        self.of_backward: Any = None
        """The scaler that scaled the loss of the last backward."""
        session.bus.on(GraphWalked, self.backward_from)
        session.bus.on(GraphRecomputed, lambda event: self._reached(event.found))
        session.bus.on(StepBegan, lambda event: self.before_step(event.optimizer))
        session.bus.on(Attempted, self._attempted, always=True)
        session.bus.on(RestBegan, lambda event: self._rest())
        session.bus.on(Boundary, lambda event: self.take_stock())

    def _rest(self) -> None:
        """What backward leaves scaled is not told any more: what it left before says nothing of later gradients."""
        for leaf in self.tensors.leaves():
            leaf.scaled = None
        for state in self.scalers.values():
            state.unscaled.clear()
            state.losses.clear()
            state.scaled_nodes.clear()

    def install(self) -> list[Callable[[], None]]:
        self._patch(torch.amp.GradScaler)

        def undo() -> None:
            for each in reversed(self._undo):
                each()

        return [undo]

    def built(self, scaler: Any) -> None:
        """Follows a subclass too: ShardedGradScaler has methods of its own that never reach GradScaler's."""
        for kind in type(scaler).__mro__:
            if issubclass(kind, torch.amp.GradScaler) and kind not in self._patched:
                self._patch(kind)

    def _patch(self, kind: type) -> None:
        methods = {
            "scale": self._around_scale,
            "unscale_": self._around_unscale,
            "step": self._around_step,
            "update": self._around_update,
            "get_scale": self._around_read,
        }
        self._patched.add(kind)
        for name, wrap in methods.items():
            if name in vars(kind):
                self._undo.append(self.session.patch(kind, name, functools.partial(self._outermost, name, wrap)))

    def _outermost(
        self, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], original: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The method as `wrap` sees it; called by a subclass's method of the same name it is that one's own part."""
        observed = wrap(original)

        def method(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            call = (id(scaler), name)
            if call in self._running:
                return original(scaler, *args, **kwargs)
            self._running.add(call)
            try:
                return observed(scaler, *args, **kwargs)
            finally:
                self._running.discard(call)

        return method

    def state(self, scaler: Any) -> ScalerState:
        if scaler not in self.scalers:
            self.scalers[scaler] = ScalerState()
        return self.scalers[scaler]

    # -- the methods

    def _around_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            out = original(scaler, outputs)
            if scaler.is_enabled():
                self.session.guard("scale", self._scaled, scaler, outputs, out)
            return out

        return scale

    def _scaled(self, scaler: Any, outputs: Any, out: Any) -> None:
        state = self.state(scaler)
        state.uses += 1
        if self.session.bus.rests:  # nobody looks at the backward that this is for
            return
        for before, after in zip(_flat(outputs), _flat(out), strict=False):
            if after.grad_fn is not None:
                state.scaled_nodes.add(private.sequence_number(after.grad_fn))
            state.losses.append(before.dtype)
            self.session.non_finite.loss(before)

    def _around_unscale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_(scaler: Any, optimizer: Any) -> None:
            if scaler.is_enabled():
                self.session.guard("unscale_", self._before_unscale, scaler, optimizer)
            try:
                original(scaler, optimizer)
            except RuntimeError as error:
                self.session.guard("unscale_", self._misused, scaler, error)
                raise
            if scaler.is_enabled():
                self.session.guard("unscale_", self._unscaled, scaler, optimizer)

        return unscale_

    def _before_unscale(self, scaler: Any, optimizer: Any) -> None:
        low = [p for p in _parameters(optimizer) if p.grad is not None and p.grad.dtype is torch.float16]
        if low:
            cause = self.session.construction.why_low(low[0])
            self.session.ledger.put(
                ("unscale", id(optimizer)),
                Observation(
                    Kind.UNSCALE,
                    "float16",
                    Role.GRADIENT,
                    cause.site if cause and cause.site else self.session.built_at(optimizer),
                    cause=Cause("the gradients were unscaled here", user_site()),
                    module=self.session.construction.name(low[0]),
                    detail=f"{len(low)} trainable parameters are float16",
                    count=len(low),
                ),
            )
            self.session.rank_file.write()
        self._check_generation(scaler, optimizer)

    def _unscaled(self, scaler: Any, optimizer: Any) -> None:
        self.state(scaler).unscaled |= {id(p) for p in _parameters(optimizer)}
        self._forget(optimizer)

    def _misused(self, scaler: Any, error: BaseException) -> None:
        """A call out of order that GradScaler itself refuses."""
        text = str(error)
        known = {
            "unscale_() has already been called": "unscale-twice",
            "unscale_() is being called after step()": "unscale-twice",
            "No inf checks were recorded prior to update": "update-without-step",
        }
        for words, misuse in known.items():
            if words in text:
                self._misuse(scaler, misuse, user_site(), text.partition(". ")[0], raises=True)
                self.session.rank_file.write()

    def _misuse(self, scaler: Any, misuse: str, site: Site | None, detail: str, raises: bool) -> None:
        self.session.once(
            ("scaler", misuse, id(scaler)),
            Observation(Kind.SCALER_CALL, site=site, detail=detail, attrs={"misuse": misuse, "raises": raises}),
        )

    def _check_generation(self, scaler: Any, optimizer: Any) -> None:
        """Gradients scaled before an update and unscaled after it are off by the change of scale."""
        state = self.state(scaler)
        for parameter in _parameters(optimizer):
            entry = self._scaled_by(parameter)
            if (
                entry is not None
                and entry[0]() is scaler
                and entry[1] != state.generation
                and parameter.grad is not None
            ):
                detail = "the scale was updated between backward and this optimizer's step"
                self._misuse(scaler, "update-per-optimizer", state.last_update, detail, raises=False)
                return

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not scaler.is_enabled():
                return original(scaler, optimizer, *args, **kwargs)
            self.session.guard("scaler.step", self._before_step, scaler, optimizer)
            outer, self.stepping = self.stepping, scaler
            self.session.bus.tell(ScalerStepBegan())
            try:
                out = original(scaler, optimizer, *args, **kwargs)
            except BaseException as error:
                self.session.guard("scaler.step", self._step_failed, scaler, optimizer, error)
                self.session.bus.tell(ScalerStepEnded(scaler, optimizer, False, failed=True))
                raise
            finally:
                self.stepping = outer
            self.session.guard("scaler.step", self._after_step, scaler, optimizer)
            return out

        return step

    def _before_step(self, scaler: Any, optimizer: Any) -> None:
        stage = scaler._per_optimizer_states[id(optimizer)]["stage"].name
        if stage == "READY":
            self._before_clipped_step(optimizer)
            self._before_unscale(scaler, optimizer)

    def _before_clipped_step(self, optimizer: Any) -> None:
        """A gradient was replaced by its clamped values while it still carried the scale."""
        if self.scale_read or self.session.gradients.rescaled:
            return
        for p in _parameters(optimizer):
            site, leaf = self.session.flow.of(p.grad).get("clipped", (None, None))
            if leaf is not None and leaf.scaled is not None and leaf is self.tensors.leaf(p):
                self.session.gradients.clip_is_scaled(p, site)

    def _step_failed(self, scaler: Any, optimizer: Any, error: BaseException) -> None:
        if "has already been called since the last update" in str(error):
            self.session.ledger.put(
                ("scaler", "missing-update", id(scaler)),
                Observation(
                    Kind.SCALER_STEP,
                    site=user_site(),
                    detail=str(error),
                    count=1,
                    attrs={"update": "missing"},
                ),
            )
            self.session.rank_file.write()

    def _after_step(self, scaler: Any, optimizer: Any) -> None:
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        skipped = fused and any(bool(flag.item()) for flag in found.values())
        # What was stepped is spent: the next backward may leave gradients in it that are zeroed before its next step.
        self.state(scaler).unscaled -= {id(p) for p in _parameters(optimizer)}
        self._forget(optimizer)
        self.session.bus.tell(ScalerStepEnded(scaler, optimizer, skipped, failed=False))

    def _attempted(self, event: Attempted) -> None:
        if event.skipped and event.scaler is not None:
            with self.session.guard.unseen():
                self.state(event.scaler).skips.at(self._scale(event.scaler))

    @staticmethod
    def _scale(scaler: Any) -> float:
        scale = getattr(scaler, "_scale", None)
        return float(scale.item()) if isinstance(scale, Tensor) else 0.0

    def _around_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(scaler, *args, **kwargs)
            except AssertionError as error:
                self.session.guard("update", self._misused, scaler, error)
                raise
            if scaler.is_enabled():
                self.session.guard("update", self._updated, scaler)

        return update

    def _updated(self, scaler: Any) -> None:
        state = self.state(scaler)
        state.generation += 1
        state.last_update = user_site()
        state.scaled_nodes.clear()
        state.unscaled.clear()

    def _around_read(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_scale(scaler: Any) -> Any:
            self.scale_read = True
            self._penalty = None
            return original(scaler)

        return get_scale

    # -- what others ask

    def scaler_of(self, numbers: list[int]) -> Any:
        """The scaler whose scaled loss is among these autograd nodes."""
        for scaler, state in self.scalers.items():
            if not state.scaled_nodes.isdisjoint(numbers):
                return scaler
        return None

    def backward_from(self, event: GraphWalked) -> None:
        """Backward reaches leaves from a loss that a scaler scaled, or from an unscaled one."""
        found, for_penalty = event.found, event.differentiates
        scaler = self.of_backward = self.scaler_of([number for _, number in found.scalars])
        leaves = list(found.leaves.values())
        if self._penalty is not None:
            self._penalty.confirmed = True
            self._penalty = None
        self.scale_read = False
        if scaler is None:
            for leaf in leaves:
                self._forget_scale(leaf)
            return
        state = self.state(scaler)
        if for_penalty:
            self._penalty = self.session.once(
                ("penalty", id(scaler)),
                Observation(
                    Kind.OP,
                    "float32",
                    Role.LOSS,
                    user_site(),
                    detail="autograd.grad of a scaled loss, and the scale was not read before the next backward",
                    attrs={"op": "gradient-penalty-scaled"},
                    confirmed=False,
                ),
            )
        if any(id(leaf) in state.unscaled and leaf.grad is not None for leaf in leaves) and not for_penalty:
            detail = "scaled gradients were added to gradients that unscale_ had already divided"
            self._misuse(scaler, "backward-after-unscale", user_site(), detail, raises=False)
        self._reached(found)

    def _reached(self, found: Walk) -> None:
        """The gradients of these leaves carry the scale of the loss that this backward began from."""
        if self.of_backward is not None:
            state = self.state(self.of_backward)
            state.saw_float16 |= torch.float16 in found.activations
            state.saw_bfloat16 |= torch.bfloat16 in found.activations
            for leaf in found.leaves.values():
                self.tensors.meet(leaf).scaled = (weakref.ref(self.of_backward), state.generation)

    def before_step(self, optimizer: Any) -> None:
        """A step that GradScaler does not take, on gradients that carry its scale."""
        session = self.session
        if self.stepping is not None or not session.window.tracing or self.scale_read or session.gradients.rescaled:
            return
        if not self.carries_scale(optimizer):
            return
        name = type(optimizer).__name__
        session.once(
            ("step", "scaled", id(optimizer)),
            Observation(
                Kind.OPTIMIZER_STEP,
                site=user_site(),
                detail=f"{name}.step on gradients that still carry the loss scale",
                attrs={"gradients": "scaled", "optimizer": name},
            ),
        )

    def take_stock(self) -> None:
        """Each scaler's dtype, whether it is needed, and whether it skips more than its search for a scale explains."""
        for scaler, state in self.scalers.items():
            site = self.session.built_at(scaler)
            if not state.uses:
                continue
            key = id(scaler)
            put = functools.partial(self._put, key, site)
            scale = getattr(scaler, "_scale", None)
            if isinstance(scale, Tensor):
                put("scale", Kind.HOLDS, DTYPE_NAMES[scale.dtype], bytes=4)
            if state.saw_bfloat16 and not state.saw_float16:
                detail = "no float16 value lies between the loss and the parameters"
                put("needless", Kind.LOSS_SCALING, "bfloat16", detail=detail, attrs={"needed": False})
            interval = getattr(scaler, "_growth_interval", 0)
            start = getattr(scaler, "_init_scale", 1.0)
            if interval >= LONGEST_SANE_INTERVAL or not 1 <= start <= LARGEST_SANE_SCALE:
                detail = f"init_scale={start:g}, growth_interval={interval}"
                attrs = {"extreme": True, "dynamic": interval < LONGEST_SANE_INTERVAL, "scale": float(start)}
                put("extreme", Kind.LOSS_SCALING, "float32", detail=detail, attrs=attrs)
            self.session.ledger.observations.pop(("skipped", key), None)
            skipped = state.skips.observation(self.session.window, site)
            if skipped is not None:
                self.session.ledger.put(("skipped", key), skipped)

    def _put(self, key: int, site: Site | None, what: str, kind: Kind, dtype: str, **more: Any) -> None:
        self.session.ledger.put((what, key), Observation(kind, dtype, Role.LOSS_SCALE, site, count=1, **more))

    def carries_scale(self, optimizer: Any) -> bool:
        """Whether a gradient of this optimizer still carries a scale."""
        return any(self._scaled_by(p) is not None for p in _parameters(optimizer) if p.grad is not None)

    def _scaled_by(self, parameter: Tensor) -> tuple[weakref.ref[Any], int] | None:
        leaf = self.tensors.leaf(parameter)
        return leaf.scaled if leaf is not None else None

    def _forget_scale(self, parameter: Tensor) -> None:
        leaf = self.tensors.leaf(parameter)
        if leaf is not None:
            leaf.scaled = None

    def _forget(self, optimizer: Any) -> None:
        for parameter in _parameters(optimizer):
            self._forget_scale(parameter)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat(item)]
    return []
