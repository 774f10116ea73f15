"""Sees loss scaling: what GradScaler scaled, unscaled, stepped, skipped and updated, in which order.

Known limitations: a scaler that is not a GradScaler is seen only by what it does to the loss and the gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import Cause, Kind, Role, Site
from .. import torch_private as private
from ..identity import TensorMap
from ..ledger import Observation
from ..sites import user_site

if TYPE_CHECKING:
    from ..session import Session

LARGEST_SANE_SCALE = 2.0**24


@dataclass
class ScalerState:
    """What one GradScaler did so far."""

    generation: int = 0
    """Rises with every update."""
    last_update: Site | None = None
    scaled_nodes: set[int] = field(default_factory=set)
    """Autograd sequence numbers of the losses it scaled."""
    losses: list[tuple[Any, Site | None]] = field(default_factory=list)
    uses: int = 0
    saw_float16: bool = False
    saw_bfloat16: bool = False
    largest_skip_scale: float = 0.0
    smallest_skip_scale: float = float("inf")


class ScalingProbe:
    """Patches the methods of GradScaler and of its subclasses that have their own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scalers: weakref.WeakKeyDictionary[Any, ScalerState] = weakref.WeakKeyDictionary()
        self.scaled: TensorMap[tuple[weakref.ref[Any], int]] = TensorMap()
        """Parameters whose gradients carry a scale: by which scaler, in which generation."""
        self.scale_read = False
        """The script asked for the scale since backward: it may unscale by hand."""
        self.stepping: Any = None
        """The scaler whose step is running."""
        self.root_scaler: Any = None
        self.last_optimizer_stepped = False

    def install(self) -> list[Callable[[], None]]:
        scaler = torch.amp.GradScaler
        methods = {
            "scale": self._around_scale,
            "unscale_": self._around_unscale,
            "step": self._around_step,
            "update": self._around_update,
            "get_scale": self._around_read,
        }
        return [self.session.patch(scaler, name, wrap) for name, wrap in methods.items()]

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
        for before, after in zip(_flat(outputs), _flat(out), strict=False):
            if after.grad_fn is not None:
                state.scaled_nodes.add(private.sequence_number(after.grad_fn))
            state.losses.append((before.dtype, user_site(3)))

    def _around_unscale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_(scaler: Any, optimizer: Any) -> None:
            if scaler.is_enabled():
                self.session.guard("unscale_", self._before_unscale, scaler, optimizer)
            original(scaler, optimizer)
            if scaler.is_enabled():
                self.session.guard("unscale_", self._forget, optimizer)

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
                    cause=Cause("the gradients were unscaled here", user_site(4)),
                    module=self.session.construction.name(low[0]),
                    detail=f"{len(low)} trainable parameters are float16",
                    count=len(low),
                ),
            )
            self.session.write()
        self._check_generation(scaler, optimizer)

    def _check_generation(self, scaler: Any, optimizer: Any) -> None:
        """Gradients scaled before an update and unscaled after it are off by the change of scale."""
        state = self.state(scaler)
        for parameter in _parameters(optimizer):
            entry = self.scaled.get(parameter)
            if (
                entry is not None
                and entry[0]() is scaler
                and entry[1] != state.generation
                and parameter.grad is not None
            ):
                self.session.ledger.put(
                    ("scaler", "update-per-optimizer", id(scaler)),
                    Observation(
                        Kind.SCALER_CALL,
                        site=state.last_update,
                        detail="the scale was updated between backward and this optimizer's step",
                        count=1,
                        attrs={"misuse": "update-per-optimizer", "raises": False},
                    ),
                )
                return

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not scaler.is_enabled():
                return original(scaler, optimizer, *args, **kwargs)
            self.session.guard("scaler.step", self._before_step, scaler, optimizer)
            outer, self.stepping = self.stepping, scaler
            self.last_optimizer_stepped = False
            try:
                out = original(scaler, optimizer, *args, **kwargs)
            except BaseException as error:
                self.session.guard("scaler.step", self._step_failed, scaler, optimizer, error)
                raise
            finally:
                self.stepping = outer
            self.session.guard("scaler.step", self._after_step, scaler, optimizer)
            return out

        return step

    def _before_step(self, scaler: Any, optimizer: Any) -> None:
        stage = scaler._per_optimizer_states[id(optimizer)]["stage"].name
        if stage == "READY":
            self._before_unscale(scaler, optimizer)

    def _step_failed(self, scaler: Any, optimizer: Any, error: BaseException) -> None:
        if "has already been called since the last update" in str(error):
            self.session.ledger.put(
                ("scaler", "missing-update", id(scaler)),
                Observation(
                    Kind.SCALER_STEP,
                    site=user_site(4),
                    detail=str(error),
                    count=1,
                    attrs={"update": "missing", "raises": True},
                ),
            )
            self.session.write()

    def _after_step(self, scaler: Any, optimizer: Any) -> None:
        """Whether this attempt was skipped: the hook did not fire, or a fused kernel was told to do nothing."""
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        skipped = not self.last_optimizer_stepped
        if not skipped and getattr(optimizer, "_step_supports_amp_scaling", False):
            skipped = any(bool(flag.item()) for flag in found.values())
        if skipped:
            state, scale = self.state(scaler), self._scale(scaler)
            state.largest_skip_scale = max(state.largest_skip_scale, scale)
            state.smallest_skip_scale = min(state.smallest_skip_scale, scale)
        self._forget(optimizer)
        self.session.attempted(optimizer, skipped)

    @staticmethod
    def _scale(scaler: Any) -> float:
        scale = getattr(scaler, "_scale", None)
        return float(scale.item()) if isinstance(scale, Tensor) else 0.0

    def _around_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> None:
            original(scaler, *args, **kwargs)
            if scaler.is_enabled():
                self.session.guard("update", self._updated, scaler)

        return update

    def _updated(self, scaler: Any) -> None:
        state = self.state(scaler)
        state.generation += 1
        state.last_update = user_site(3)
        state.scaled_nodes.clear()

    def _around_read(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_scale(scaler: Any) -> Any:
            self.scale_read = True
            return original(scaler)

        return get_scale

    # -- what others ask

    def scaler_of(self, numbers: list[int]) -> Any:
        """The scaler whose scaled loss is among these autograd nodes."""
        for scaler, state in self.scalers.items():
            if not state.scaled_nodes.isdisjoint(numbers):
                return scaler
        return None

    def backward_from(self, scaler: Any, leaves: list[Tensor]) -> None:
        """Backward reached these leaves from a loss that `scaler` scaled; None: from an unscaled one."""
        self.root_scaler = scaler
        self.scale_read = False
        for leaf in leaves:
            if scaler is None:
                self.scaled.pop(leaf)
            else:
                self.scaled.set(leaf, (weakref.ref(scaler), self.state(scaler).generation))

    def carries_scale(self, optimizer: Any) -> bool:
        """Whether a gradient of this optimizer still carries a scale."""
        return any(self.scaled.get(p) is not None for p in _parameters(optimizer) if p.grad is not None)

    def any_scaled(self, parameters: list[Tensor]) -> bool:
        return any(self.scaled.get(p) is not None for p in parameters)

    def _forget(self, optimizer: Any) -> None:
        for parameter in _parameters(optimizer):
            self.scaled.pop(parameter)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat(item)]
    return []
