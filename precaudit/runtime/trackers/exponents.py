"""How large values are, by power of two: weights, gradients, updates, optimizer state and matmul results of one step.

Read once for each optimizer, in its first traced step, from evenly strided samples in which every element stands for as
many; nothing of them is kept but counts. An update is what arrived in the weights: zero where it was rounded away.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES
from ..events import BackwardBegan, Bus, ScalerStepBegan, StepBegan, StepEnded, WindowClosed
from ..operands import in_graph
from ..operations import FORWARD, Heard, Op, Operations
from ..optable import MATMULS
from ..process.ledger import Ledger
from .contents import Contents
from .optimizers import parameters
from .samples import limit
from .window import Window

SAMPLED = 1 << 18
"""Elements of all tensors of one kind."""
RESULTS, OF_RESULT = 64, 2048
"""Matmul results that are looked at, and elements of each."""
LOWEST, HIGHEST = -149, 127
"""Exponents of float32; what is beyond in float64 is counted with the outermost."""
ZERO, NOT_FINITE, FIRST = 0, 1, 2
SLOTS = FIRST + HIGHEST - LOWEST + 1
"""What an element may be: zero, not finite, or of an exponent."""

Name = tuple[str, str]
"""("AdamW.exp_avg", "bfloat16")."""


class Exponents:
    """The histograms of one process."""

    def __init__(self, bus: Bus, operations: Operations, window: Window, ledger: Ledger, contents: Contents) -> None:
        self._window, self._ledger, self._contents = window, ledger, contents
        self._counts: dict[Name, list[float]] = {}
        self._read: set[int] = set()
        """`id` of each optimizer that was looked at."""
        self._before: list[Tensor] = []
        """Samples of the weights that a step is about to change."""
        self._results: dict[torch.dtype, list[Tensor]] = {}
        self._left = RESULTS
        self.loss_scale = 0.0
        """With which gradients came out of backward; 0 where no GradScaler was seen."""
        operations.on(self._hear)
        bus.on(BackwardBegan, self._backward_began)
        bus.on(ScalerStepBegan, self._scaler_step_began)
        bus.on(StepBegan, self._step_began)
        bus.on(StepEnded, self._step_ended)
        bus.on(WindowClosed, lambda event: self._forget())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each kind and dtype, as the plain values of a report's histograms."""
        return [
            {"what": what, "dtype": dtype, **_trimmed([int(count) for count in counts])}
            for (what, dtype), counts in sorted(self._counts.items())
        ]

    # -- matmul results

    def _hear(self, op: Op) -> Iterable[Heard]:
        if op.name in MATMULS:
            yield Heard(FORWARD, self._result)

    def _result(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if not self._left or not limit() or not in_graph(args):
            return
        first = out if isinstance(out, Tensor) else next((one for one in out if isinstance(one, Tensor)), None)
        if first is None or first.dtype not in FLOATING_DTYPES or not first.numel() or not _plain(first):
            return
        self._left -= 1
        flat = _dense(first.detach())
        if flat is not None:
            # A copy: the program may write to it, and it is not to live longer for our sake.
            self._results.setdefault(first.dtype, []).append(flat[:: -(-flat.numel() // OF_RESULT) | 1].clone())

    def _backward_began(self, event: BackwardBegan) -> None:
        if self._results:
            results, self._results, self._left = self._results, {}, 0
            for dtype, samples in results.items():
                self._count("activations", dtype, samples)

    # -- a step

    def _scaler_step_began(self, event: ScalerStepBegan) -> None:
        scale = getattr(event.scaler, "_scale", None)
        if self._window.tracing and not self.loss_scale and isinstance(scale, Tensor):
            self._ledger.defer([scale.detach().float()], self._scaled)

    def _scaled(self, values: list[float]) -> None:
        self.loss_scale = self.loss_scale or values[0]

    def _step_began(self, event: StepBegan) -> None:
        if self._window.tracing and limit() and id(event.optimizer) not in self._read:
            weights = _own(parameters(event.optimizer))
            self._before = [sample.clone() for sample in _samples(weights)]

    def _step_ended(self, event: StepEnded) -> None:
        if not self._window.tracing or not limit() or id(event.optimizer) in self._read:
            return
        self._read.add(id(event.optimizer))
        held = parameters(event.optimizer)
        weights = _own(held)
        after, before, self._before = _samples(weights), self._before, []
        self._kind("weights", after)
        if [one.shape for one in before] == [one.shape for one in after]:
            moved = [new.float() - old.float() for new, old in zip(after, before, strict=True)]
            for dtype in dict.fromkeys(one.dtype for one in after):
                self._count("updates", dtype, [m for m, one in zip(moved, after, strict=True) if one.dtype is dtype])
        self._kind("gradients", _samples(_own(p.grad for p in held if p.grad is not None)))
        slots: dict[str, list[Tensor]] = {}
        for each in self._contents.kept(event.optimizer):
            if each.tensor.numel() > 1:
                slots.setdefault(each.name, []).append(each.tensor)
        optimizer = type(event.optimizer).__name__
        for name, tensors in slots.items():
            self._kind(f"{optimizer}.{name}", _samples(_own(tensors)))

    def _kind(self, what: str, samples: list[Tensor]) -> None:
        for dtype in dict.fromkeys(sample.dtype for sample in samples):
            self._count(what, dtype, [sample for sample in samples if sample.dtype is dtype])

    def _count(self, what: str, dtype: torch.dtype, samples: list[Tensor]) -> None:
        """Counts these samples of one dtype; the numbers are read with the next of the ledger's."""
        add = partial(self._add, (what, DTYPE_NAMES[dtype]))
        for device in dict.fromkeys(sample.device for sample in samples):
            self._ledger.defer([counted(torch.cat([s for s in samples if s.device == device]))], add)

    def _add(self, name: Name, counts: list[float]) -> None:
        mine = self._counts.setdefault(name, [0.0] * SLOTS)
        for slot, count in enumerate(counts):
            mine[slot] += count

    def _forget(self) -> None:
        self._before, self._results, self._left = [], {}, 0


def counted(flat: Tensor) -> Tensor:
    """How many of these elements are zero, not finite, and of each exponent; without a sync, nor any race."""
    size = (flat if flat.dtype is torch.float64 else flat.float()).abs()
    exponents = torch.frexp(size).exponent
    slots = exponents.sub_(1 + LOWEST).clamp_(0, HIGHEST - LOWEST).add_(FIRST)
    slots.masked_fill_(size == 0, ZERO).masked_fill_(~torch.isfinite(size), NOT_FINITE)
    return torch.bincount(slots, minlength=SLOTS) if slots.device.type == "cpu" else by_sorting(slots)


def by_sorting(slots: Tensor) -> Tensor:
    """The same as `bincount`, which on a GPU waits for the device and adds in no order."""
    ends = torch.searchsorted(slots.sort().values, torch.arange(SLOTS, device=slots.device), right=True)
    return torch.diff(ends, prepend=ends.new_zeros(1))


def _trimmed(counts: list[int]) -> dict[str, Any]:
    """The counts without the empty ends: `{"zeros": 3, "not_finite": 0, "lowest": -20, "counts": [1, 5, …]}`."""
    filled = [at for at, count in enumerate(counts[FIRST:]) if count]
    first, last = (filled[0], filled[-1] + 1) if filled else (0, 0)
    return {
        "zeros": counts[ZERO],
        "not_finite": counts[NOT_FINITE],
        "lowest": LOWEST + first if filled else 0,
        "counts": counts[FIRST + first : FIRST + last],
    }


def _own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's own floating tensors, detached, flat; of those that are no plain memory, none."""
    own: list[Tensor] = []
    for tensor in tensors:
        plain = private.without_graph(tensor)
        flat = _dense(plain) if plain is not None and plain.dtype in FLOATING_DTYPES and plain.numel() else None
        if flat is not None:
            own.append(flat)
    return own


def _plain(tensor: Tensor) -> bool:
    return type(tensor) in private.PLAIN or private.is_plain(type(tensor))


def _dense(tensor: Tensor) -> Tensor | None:
    """Its elements as one row, in the order of memory; None where they lie apart, or are none."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    if tensor.is_contiguous():
        return tensor.view(-1)
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((span,), (1,)) if span == tensor.numel() else None


def _samples(flats: list[Tensor]) -> list[Tensor]:
    """Every n-th element of each, with one odd n for all, so that each element stands for as many."""
    step = -(-sum(flat.numel() for flat in flats) // SAMPLED) | 1
    return [flat[::step] for flat in flats]
