"""fully_shard, alone and over tensor parallel meshes: its MixedPrecisionPolicy and its groups of DTensors.

What it gathered for the forward pass it frees by shrinking the storage to nothing: of `_unsharded_param` and
`all_gather_outputs` only dtype and shape may be read, values never; reading those ends the process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Role, Site
from .. import torch_private as private
from ..events import Bus, WrapperMade
from ..guard import Guard
from ..patching import patch
from ..process.ledger import Observation
from ..trackers.claims import Claim, Declaration
from ..trackers.loss_scale import LossScale
from . import Framework
from .sharding import policy_declares, unscaled_shards


class FSDP2(Framework):
    """One state per fully_shard call; the module keeps its place in the user's tree, so names are the user's own."""

    title = "FSDP2"
    order = 80
    classes = ("torch.distributed.fsdp._fully_shard",)
    awaits = ("torch.distributed.fsdp._fully_shard._fsdp_state",)

    def __init__(self, guard: Guard, bus: Bus, loss_scale: LossScale) -> None:
        self._guard, self._bus, self._loss_scale = guard, bus, loss_scale
        self._sharded_at: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()
        self._owners: dict[int, weakref.ref[Any]] = {}
        """`id` of a sharded parameter -> what fully_shard keeps of it: itself, its module, and its name there."""

    def install(self) -> Iterable[Callable[[], None]]:
        owner, name = private.fsdp2_begins()
        return [patch(owner, name, self._around_init)]

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init(state: Any, *args: Any, **kwargs: Any) -> Any:
            self._bus.tell(WrapperMade(state))
            return original(state, *args, **kwargs)

        return init

    def meet(self, made: Any, site: Site | None) -> None:
        if not isinstance(made, (torch.nn.Module, Tensor)):
            self._sharded_at.setdefault(made, site)

    def _groups(self) -> Iterator[tuple[Any, Any, Site | None]]:
        """(state, group of parameters that communicate together, the user's fully_shard line)"""
        for state, site in list(self._sharded_at.items()):
            several = getattr(state, "_fsdp_param_groups", None)
            one = getattr(state, "_fsdp_param_group", None) if not several else None
            for group in several or ([one] if one is not None else []):
                yield state, group, site

    def owner(self, parameter: Tensor) -> tuple[Any, str] | None:
        if id(parameter) not in self._owners:
            for _, group, _ in self._groups():
                for held in group.fsdp_params:
                    self._owners[id(held.sharded_param)] = weakref.ref(held)
        known = self._owners.get(id(parameter))
        held = known() if known is not None else None
        if held is None or held.sharded_param is not parameter:
            return None
        return held._module_info.module, str(held._module_info.param_name)

    def accumulates(self) -> Iterable[Claim]:
        for _, group, site in self._groups():
            for held in group.fsdp_params:
                whole = held.unsharded_accumulated_grad
                if whole is not None:
                    yield Claim(whole, Role.GRADIENT_ACCUMULATION, "unsharded_accumulated_grad", site)
                elif held.sharded_param.grad is not None:
                    yield Claim(held.sharded_param.grad, Role.GRADIENT_ACCUMULATION, "sharded .grad", site)

    def declares(self) -> Iterable[Declaration]:
        for _, group, site in self._groups():
            original = next((held.sharded_param.dtype for held in group.fsdp_params), None)
            yield from policy_declares("MixedPrecisionPolicy", group.mp_policy, original, site)

    def observes(self) -> Iterable[Observation]:
        for _, group, site in self._groups():
            if group.mp_policy.param_dtype is torch.float16:
                yield from unscaled_shards(self._loss_scale, site, "FSDP2")
                return
