"""Tells what GradScaler scaled, unscaled, stepped, refused and updated, in which order.

Known limitations: a scaler that is not a GradScaler is seen only by what it does to the loss and the gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..events import (
    Bus,
    LossScaled,
    ScalerBuilt,
    ScaleRead,
    ScalerRefused,
    ScalerStepBegan,
    ScalerStepEnded,
    ScalerUpdated,
    UnscaleBegan,
    Unscaled,
)
from ..guard import Guard
from ..patching import Undo, Wrap, patch
from . import Tap


class ScalingTap(Tap):
    """Patches the methods of GradScaler and of its subclasses that have their own."""

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus, self._guard = bus, guard
        self._undo: list[Undo] = []
        self._patched: set[type] = set()
        self._running: set[tuple[int, str]] = set()
        """Methods in progress, by scaler."""
        bus.on(ScalerBuilt, self._scaler_built)

    def install(self) -> Iterable[Undo]:
        yield self._take_out
        self._patch(torch.amp.GradScaler)

    def _take_out(self) -> None:
        for undo in reversed(self._undo):
            undo()

    def _scaler_built(self, event: ScalerBuilt) -> None:
        """Follows a subclass too: ShardedGradScaler has methods of its own that never reach GradScaler's."""
        for kind in type(event.scaler).__mro__:
            if issubclass(kind, torch.amp.GradScaler) and kind not in self._patched:
                self._patch(kind)

    def _patch(self, kind: type) -> None:
        methods: dict[str, Wrap] = {
            "scale": self._around_scale,
            "unscale_": self._around_unscale,
            "step": self._around_step,
            "update": self._around_update,
            "get_scale": self._around_read,
        }
        self._patched.add(kind)
        for name, wrap in methods.items():
            if name in vars(kind):
                self._undo.append(patch(kind, name, functools.partial(self._outermost, name, wrap)))

    def _outermost(self, name: str, wrap: Wrap, original: Callable[..., Any]) -> Callable[..., Any]:
        """The method as `wrap` sees it; called by a subclass's method of the same name it is that one's own part."""
        observed = wrap(original)

        def method(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            call = (id(scaler), name)
            if call in self._running or not scaler.is_enabled():
                return original(scaler, *args, **kwargs)
            self._running.add(call)
            try:
                return observed(scaler, *args, **kwargs)
            finally:
                self._running.discard(call)

        return method

    # -- the methods

    def _around_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            out = original(scaler, outputs)
            self._guard("scaler.scale", self._scaled, scaler, outputs, out)
            return out

        return scale

    def _scaled(self, scaler: Any, outputs: Any, out: Any) -> None:
        self._bus.tell(LossScaled(scaler, _flat(outputs), _flat(out)))

    def _around_unscale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_(scaler: Any, optimizer: Any) -> None:
            self._bus.tell(UnscaleBegan(scaler, optimizer))
            try:
                original(scaler, optimizer)
            except RuntimeError as error:
                self._bus.tell(ScalerRefused(scaler, error))
                raise
            self._bus.tell(Unscaled(scaler, optimizer))

        return unscale_

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard("scaler.step", self._step_begins, scaler, optimizer)
            try:
                out = original(scaler, optimizer, *args, **kwargs)
            except BaseException as error:
                self._bus.tell(ScalerRefused(scaler, error))
                self._bus.tell(ScalerStepEnded(scaler, optimizer, False, failed=True))
                raise
            self._guard("scaler.step", self._step_ended, scaler, optimizer)
            return out

        return step

    def _step_begins(self, scaler: Any, optimizer: Any) -> None:
        stage = scaler._per_optimizer_states[id(optimizer)]["stage"].name
        self._bus.tell(ScalerStepBegan(scaler, optimizer, stage == "READY"))

    def _step_ended(self, scaler: Any, optimizer: Any) -> None:
        found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        skipped = fused and any(bool(flag.item()) for flag in found.values())
        self._bus.tell(ScalerStepEnded(scaler, optimizer, skipped, failed=False))

    def _around_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(scaler, *args, **kwargs)
            except AssertionError as error:
                self._bus.tell(ScalerRefused(scaler, error))
                raise
            self._bus.tell(ScalerUpdated(scaler))

        return update

    def _around_read(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_scale(scaler: Any) -> Any:
            self._bus.tell(ScaleRead())
            return original(scaler)

        return get_scale


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat(item)]
    return []
