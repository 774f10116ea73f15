"""float32 masters whose content is bfloat16 or float16: the low mantissa bits are all zero, and stay so after updates.

Read at step boundaries rather than per op. Source: the bit layouts; float32 has 16 mantissa bits more than bfloat16, 13
more than float16.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
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
    """PA105. Looks at the float32 weights each time an optimizer is about to step, at each of them by itself.

    One that is rounded back among others that are not is told too: a head, an encoder, the layers of one dtype.
    """

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
        leaves.sort(key=lambda leaf: min(private.local(leaf).numel(), most))  # samples of one length side by side
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
        # A weight that began at zero is a multiple of its first gradient; one set to a constant proves nothing.
        moved &= (before != 0) & (now != 0) & (now != now.roll(1))
        written, here = [self._tensors.of(t).written_at for t in own], user_site()
        lengths = [sample.numel() for sample in samples]

        def use(values: list[float]) -> None:
            count, *hollow = (values[i : i + tensors] for i in range(0, len(values), tensors))
            for content, low in zip(BEYOND, hollow, strict=True):
                if which := _hollow(count, low):
                    self._report(
                        optimizer,
                        len(which),
                        "after an applied step" if len(which) == tensors else f"of {tensors} after an applied step",
                        written[which[0]] or here,
                        {"after_step": True, "restored": False, "content": content},
                    )
                    return

        found = [moved, *(moved & ~more for more in beyond.values())]
        self._ledger.defer([part for bits in found for part in _by_tensor(bits, lengths)], use)

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


def _by_tensor(bits: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """How many are set of each of the tensors that these lie in, one after the other, the shorter first."""
    together = [(length, len(list(same))) for length, same in groupby(lengths)]
    ends = accumulate((length * number for length, number in together), initial=0)
    for (length, _), (start, end) in zip(together, pairwise(ends), strict=True):
        yield bits[start:end].view(-1, length).sum(1)


def _hollow(moved: Sequence[float], low: Sequence[float]) -> list[int]:
    """The numbers of the weights that are hollow: all where all that moved is, else each of which enough moved."""
    if sum(moved) >= FEWEST and sum(moved) == sum(low):
        return list(range(len(moved)))
    return [
        i for i, (count, of_these) in enumerate(zip(moved, low, strict=True)) if count == of_these and count >= FEWEST
    ]


def _has_moments(optimizer: Any) -> bool:
    """Whether it holds anything for a parameter yet: DeepSpeed makes its state before the first step, as zeros.

    Tables that are no parameter's, as the codes of an 8-bit optimizer, are there from the beginning.
    """
    kept = (private.local(held.tensor) for held in state_tensors(optimizer) if held.parameter is not None)
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
