"""FullyShardedDataParallel: its MixedPrecision, its flat parameters, and the scaler that knows of shards."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Role, Site
from ..dtypes import DTYPE_NAMES
from ..process.ledger import Observation
from ..trackers.claims import Claim, Declaration
from ..trackers.loss_scale import LossScale
from ..trackers.modules import Modules
from . import Framework
from .sharding import pattern, policy_declares, unscaled_shards


class FSDP1(Framework):
    """Everything is read off the wrappers; a handle belongs to each wrapper that has parameters of its own."""

    title = "FSDP1"
    order = 90
    classes = ("torch.distributed.fsdp.fully_sharded_data_parallel",)
    inserts = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

    def __init__(self, modules: Modules, loss_scale: LossScale) -> None:
        self._modules, self._loss_scale = modules, loss_scale
        self._wrapped_at: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()

    def meet(self, made: Any, site: Site | None) -> None:
        if isinstance(made, torch.nn.Module):
            self._wrapped_at.setdefault(made, site)

    def _handles(self) -> Iterator[tuple[Any, Any, Site | None]]:
        """(wrapper, handle of its flat parameter, the user's wrapping line)"""
        for wrapper, site in list(self._wrapped_at.items()):
            handle = getattr(wrapper, "_handle", None)
            if handle is not None and isinstance(getattr(handle, "flat_param", None), Tensor):
                yield wrapper, handle, site

    def parameter_name(self, parameter: Tensor) -> str:
        fqns = getattr(parameter, "_fqns", None)
        if not fqns:
            return ""
        for wrapper, handle, _ in self._handles():
            if handle.flat_param is parameter:
                front = self._modules.module_name(wrapper)
                return pattern([f"{front}.{fqn}" if front else fqn for fqn in fqns])
        return pattern(fqns)

    def accumulates(self) -> Iterable[Claim]:
        for _, handle, site in self._handles():
            flat = handle.flat_param
            for name in ("_saved_grad_shard", "grad"):
                held = getattr(flat, name, None)
                if isinstance(held, Tensor):
                    yield Claim(held, Role.GRADIENT_ACCUMULATION, "flat_param.grad", site, flat)
                    break

    def declares(self) -> Iterable[Declaration]:
        for wrapper, handle, site in self._handles():
            policy = getattr(wrapper, "mixed_precision", None)
            yield from policy_declares("MixedPrecision", policy, getattr(handle, "_orig_param_dtype", None), site)
            buffers = getattr(policy, "buffer_dtype", None)
            if buffers is not None and any(True for _ in wrapper.buffers()):
                word = "MixedPrecision(buffer_dtype)"
                yield Declaration(Role.NORM_RUNNING_STATISTICS, DTYPE_NAMES[buffers], word, site)

    def observes(self) -> Iterable[Observation]:
        for _, handle, site in self._handles():
            if getattr(handle, "_fwd_bwd_param_dtype", None) is torch.float16 and handle.uses_sharded_strategy:
                yield from unscaled_shards(self._loss_scale, site, "FSDP1", needs="ShardedGradScaler")
                return
