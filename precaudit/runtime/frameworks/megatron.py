"""Megatron-Core: masters in `main_param`, gradients summed in `main_grad`, in buffers of a dtype of their own.

Attribute names are those of megatron-core 0.16; one that is missing is not told of.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES
from ..guard import Guard
from ..patching import patch
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.claims import Claim, Declaration
from ..trackers.modules import Modules
from . import Framework, imported


class Megatron(Framework):
    """Its DistributedDataParallel is met as it is built; its optimizers, around the one that steps, as they step."""

    title = "Megatron"
    order = 35
    classes = ("megatron.core",)
    awaits = ("megatron.core.optimizer.optimizer_config",)
    inserts = frozenset({"module"})

    def __init__(self, modules: Modules, guard: Guard) -> None:
        self._modules, self._guard = modules, guard
        self._configured: Site | None = None
        """Where the last OptimizerConfig was made."""
        self._wrappers: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()
        self._optimizers: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()

    def install(self) -> Iterable[Callable[[], None]]:
        return [patch(kind, "__init__", self._around_config) for kind in imported(self.awaits[0], "OptimizerConfig")]

    def _around_config(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(config: Any, *args: Any, **kwargs: Any) -> None:
            self._guard("OptimizerConfig", self._configured_here)
            original(config, *args, **kwargs)

        return __init__

    def _configured_here(self) -> None:
        self._configured = user_site()

    def meet(self, made: Any, site: Site | None) -> None:
        if any(kind.__name__ == "DistributedDataParallel" for kind in type(made).__mro__):  # while it is being built
            self._wrappers.setdefault(made, site)
        elif hasattr(made, "grad_scaler"):
            self._optimizers.setdefault(made, site)

    def _parameters(self) -> Iterator[tuple[Tensor, Site | None]]:
        for wrapper, site in list(self._wrappers.items()):
            for parameter in wrapper.parameters():
                yield parameter, site

    def parameter_name(self, parameter: Tensor) -> str:
        for own, _ in self._parameters():
            if getattr(own, "main_param", None) is parameter:
                return self._modules.name(own)
        return ""

    def accumulates(self) -> Iterable[Claim]:
        for parameter, site in self._parameters():
            summed = getattr(parameter, "main_grad", None)
            if isinstance(summed, Tensor):
                yield Claim(summed, Role.GRADIENT_ACCUMULATION, ".main_grad", site, parameter)

    def claims(self) -> Iterable[Claim]:
        for optimizer, site in list(self._optimizers.items()):
            scale = getattr(optimizer.grad_scaler, "_scale", None)
            if isinstance(scale, Tensor):
                yield Claim(scale, Role.LOSS_SCALE, type(optimizer.grad_scaler).__name__, site)

    def observes(self) -> Iterable[Observation]:
        """A scale that `loss_scale` fixed, of float16 weights: a DynamicGradScaler would have a `growth_factor`."""
        for optimizer, site in list(self._optimizers.items()):
            scaler = optimizer.grad_scaler
            if scaler is not None and optimizer.config.fp16 and not hasattr(scaler, "growth_factor"):
                scale = float(scaler._scale)
                yield Observation(
                    Kind.LOSS_SCALING,
                    "float32",
                    Role.LOSS_SCALE,
                    self._configured or site,
                    detail=f"loss_scale={scale:g} is never adapted; None is dynamic",
                    count=1,
                    attrs={"extreme": True, "dynamic": False, "scale": scale},
                )

    def scales_loss(self) -> bool:
        return any(optimizer.grad_scaler is not None for optimizer in self._optimizers)

    def declares(self) -> Iterable[Declaration]:
        for wrapper, site in list(self._wrappers.items()):
            dtypes = {p.main_grad.dtype for p in wrapper.parameters() if hasattr(p, "main_grad")}
            chosen = "explicit" if dtypes and wrapper.ddp_config.grad_reduce_in_fp32 else "framework"
            for dtype in dtypes:
                yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[dtype], "grad_reduce_in_fp32", site, chosen)
