"""float32 masters whose content is bfloat16 or float16: the low mantissa bits are all zero, and stay so after updates.

Read at step boundaries rather than per op. Source: the bit layouts; float32 has 16 mantissa bits more than bfloat16, 13
more than float16.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from .. import torch_private as private
from ..events import Bus, StepBegan, WindowClosed
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.modules import Modules
from ..trackers.optimizers import state_tensors, trained
from ..trackers.samples import SAMPLE, limit
from ..trackers.steps import Steps
from ..trackers.tensors import Tensors
from . import Watcher

SAMPLED = 256
"""Elements of each weight."""
FEWEST = 64
"""Fewer distinct values than this prove nothing: ones, zeros, a handful of scales."""
BEYOND = {"bfloat16": 0xFFFF, "float16": 0x1FFF}
"""The mantissa bits of float32 that a dtype lacks: bfloat16's first, of which float16's are a part."""


class Hollow(Watcher):
    """PA105. Looks at the float32 weights each time an optimizer is about to step."""

    def __init__(self, bus: Bus, ledger: Ledger, tensors: Tensors, modules: Modules, steps: Steps) -> None:
        self._steps, self._tensors = steps, tensors
        self._modules = modules
        self._ledger = ledger
        self.before: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Tensor]] = weakref.WeakKeyDictionary()
        """Optimizer -> the weights that it steps on, by `id` -> their sample when it last was about to.

        DeepSpeed steps on one group after another, each as if there were no other.
        """
        bus.on(StepBegan, self._step_began)
        bus.on(WindowClosed, lambda event: self.before.clear())  # tensors of ours, which a program may count

    def _step_began(self, event: StepBegan) -> None:
        self.look(event.optimizer, trained(event.optimizer))

    def look(self, optimizer: Any, parameters: Iterable[Tensor]) -> None:
        """Elements that the last step moved and that are bfloat16 values again; at the start, a resumed run's."""
        if not limit():
            return
        most = limit() if limit() > SAMPLE else SAMPLED
        leaves = [leaf for leaf in parameters if _may_be_hollow(private.local(leaf))]
        own = [private.local(leaf) for leaf in leaves]
        samples = [_first(t, most) for t in own]
        if not samples or len({sample.device for sample in samples}) > 1:
            return
        now = private.flattened(samples)
        bits = now.view(torch.int32)
        beyond = {content: (bits & mask) != 0 for content, mask in BEYOND.items()}
        key = tuple(map(id, leaves))  # not where they lie: `p.data = p.data.bfloat16().float()` moves them
        seen = self.before.setdefault(optimizer, {})
        before, seen[key] = seen.get(key), now
        tensors = len(samples)
        if before is None:
            resumed = optimizer not in self._steps.stepped and _has_moments(optimizer)
            content = next((name for name, more in beyond.items() if not bool(more.any())), None) if resumed else None
            if content is not None and int(now.unique().numel()) >= FEWEST:
                attrs = {"restored": True, "after_step": False, "content": content}
                site = self._modules.loaded_at or self._modules.built_at.get(optimizer)
                self._report(optimizer, tensors, "at the start of a resumed run", site, attrs)
            return
        moved = (now != before) & torch.isfinite(now)  # nan and inf have no low bits either
        site = self._tensors.of(own[0]).written_at or user_site()

        def use(values: list[float]) -> None:
            content = next((name for name, hollow in zip(BEYOND, values[1:], strict=True) if hollow == values[0]), None)
            if values[0] >= FEWEST and content is not None:
                attrs = {"after_step": True, "restored": False, "content": content}
                self._report(optimizer, tensors, "after an applied step", site, attrs)

        self._ledger.defer([moved.sum(), *((moved & ~more).sum() for more in beyond.values())], use)

    def _report(self, optimizer: Any, count: int, when: str, site: Site | None, attrs: dict[str, Any]) -> None:
        self._ledger.put(
            (Hollow, id(optimizer)),
            Observation(
                Kind.HOLLOW,
                "float32",
                Role.MASTER_WEIGHT,
                site,
                detail=f"{count} weights {when}",
                count=count,
                attrs=attrs,
                evidence={"hollow": 1.0},
            ),
        )


def _has_moments(optimizer: Any) -> bool:
    """Whether its state holds anything yet: DeepSpeed makes it before the first step, as zeros."""
    kept = (private.local(held.tensor) for held in state_tensors(optimizer))
    return any(t.is_floating_point() and t.numel() > 1 and bool(_first(t, SAMPLED).any()) for t in kept)


def _first(tensor: Tensor, most: int) -> Tensor:
    """Its first elements, in memory where it has no gaps."""
    if tensor.numel() <= most:
        return tensor
    if tensor.is_contiguous():
        return torch.as_strided(tensor, (most,), (1,), tensor.storage_offset())
    return tensor.reshape(-1)[:most]


def _may_be_hollow(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.numel() >= FEWEST
