"""What each optimizer holds, told at each step boundary: moments, masters, scalars; which tensors are its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import Boundary, Bus, StepEnded, StepReturned, StepUnseen
from .optimizers import Held, group_tensors, parameters, state_tensors, trained
from .tensors import Record, Tensors
from .window import Window

COUNTER = re.compile(r"step|count|mu_product|eta$|^mu$|^t$")
HYPERPARAMETER = re.compile(r"step|count|beta|lr|decay|momentum|mu_product|eta$|^mu$|^t$")
BLOCK_CODES = frozenset({torch.uint8, torch.int8, *(d for d, name in DTYPE_NAMES.items() if name.startswith("float8"))})
"""What block-wise quantised state is stored in; 4-bit codes lie two in a byte."""
FEWEST_CODES = 64


class Moments(NamedTuple):
    """Optimizer state of one dtype."""

    names: dict[str, None]
    owners: dict[int, Tensor]
    tensors: list[Tensor]
    scales: list[Tensor]
    """What belongs to block-wise codes: scales and lookup tables."""


def blocks(kept: Sequence[Held]) -> Iterator[tuple[Held, list[Tensor] | None]]:
    """Each tensor an optimizer keeps, or, for block-wise codes, the codes with their scales and lookup tables.

    Codes are 8-bit tensors of a parameter's size, or of half of it, beside smaller floating ones in the same dict or
    wrapper (https://arxiv.org/abs/2110.02861); without any scale they are something else.
    """
    if BLOCK_CODES.isdisjoint([held.tensor.dtype for held in kept]):  # nearly always
        yield from [(held, None) for held in kept]
        return
    by_box: dict[Any, list[Held]] = {}
    for held in kept:
        by_box.setdefault(held.box or id(held.tensor), []).append(held)
    for box in by_box.values():
        if not any(held.tensor.dtype in BLOCK_CODES for held in box):
            yield from [(held, None) for held in box]
            continue
        codes = [h for h in box if h.tensor.dtype in BLOCK_CODES and h.tensor.numel() >= FEWEST_CODES]
        scales = [h.tensor for h in box if _scales(h)] if codes else []
        of_codes, of_scales = {id(h.tensor) for h in codes}, {id(t) for t in scales}
        for held in box:
            if scales and id(held.tensor) in of_codes:
                yield held, scales if held is codes[0] else []
            elif id(held.tensor) not in of_scales:
                yield held, None


def _scales(held: Held) -> bool:
    """Whether this, beside codes, is what they are multiplied by or looked up in."""
    if held.tensor.dtype in BLOCK_CODES or not held.tensor.dtype.is_floating_point or held.tensor.ndim == 0:
        return False
    return bool(held.part) or held.parameter is None or held.tensor.numel() < held.parameter.numel()


def _scalars(kept: Iterable[Held]) -> set[str]:
    """Names of state that is one number for a parameter, as step counters are, where the parameter is one number too.

    The state of this name beside larger parameters tells, or, where there are none, whether it is called a counter. A
    momentum of one element is a momentum.
    """
    numbers: set[str] = set()
    moments: set[str] = set()
    for held in kept:
        if held.parameter is not None:
            if held.tensor.numel() > 1:
                moments.add(held.name)
            elif held.parameter.numel() > 1 or COUNTER.search(held.name):
                numbers.add(held.name)
    return numbers - moments


class OptimizerRead(NamedTuple):
    """A step of this optimizer is over, and this is what it holds now."""

    optimizer: Any
    kept: list[Held]
    """All that it keeps from step to step."""
    mine: list[Tensor]
    """The parameters that it trains."""
    moments: dict[tuple[str, Any], Moments]
    """(what makes their dtype harmless: "kahan", "block-wise" or "", dtype) -> state."""
    masters: dict[Any, list[Tensor]]
    """Dtype -> weights that it keeps beside the parameters."""
    scalars: dict[tuple[str, Any], list[Tensor]]
    """(name, dtype) -> one-element tensors: step counts, learning rates, decays."""


class Contents:
    """Looks into optimizers, once for all who ask."""

    def __init__(self, bus: Bus, window: Window, tensors: Tensors) -> None:
        self._bus, self._window, self._tensors = bus, window, tensors
        self._ending: tuple[Any, list[Held]] | None = None
        """The optimizer whose step has just ended, and what it keeps, until the program goes on."""
        bus.on(StepUnseen, lambda event: self._label(event.optimizer))
        bus.on(StepEnded, self._step_ended)
        bus.on(Boundary, self._boundary)
        bus.on(StepReturned, lambda event: self._let_go(), always=True)

    def _step_ended(self, event: StepEnded) -> None:
        if self._window.tracing:
            self._ending = event.optimizer, state_tensors(event.optimizer)
            self._label(event.optimizer)

    def _let_go(self) -> None:
        """Comes after all that the end of a step led to: from here on the program may change its optimizer."""
        self._ending = None

    def kept(self, optimizer: Any) -> list[Held]:
        """What an optimizer keeps from step to step. Asked while a step ends, it is looked up once for all."""
        if self._ending is not None and self._ending[0] is optimizer:
            return self._ending[1]
        return state_tensors(optimizer)

    def _label(self, optimizer: Any) -> None:
        """Learns which tensors are the optimizer's, and how it calls them."""
        kept = self.kept(optimizer)
        for held, known in zip(kept, self._tensors.known([held.tensor for held in kept]), strict=True):
            if not known.by_optimizer:
                known = known or self._tensors.learn(held.tensor)
                known.by_optimizer, known.slot = True, held.name
        mine = [private.local(parameter) for parameter in parameters(optimizer)]
        for own, known in zip(mine, self._tensors.known(mine), strict=True):
            if not known.by_optimizer:
                (known or self._tensors.learn(own)).by_optimizer = True

    def _boundary(self, event: Boundary) -> None:
        for optimizer in event.optimizers:
            self._bus.tell(self._read(optimizer))

    def _read(self, optimizer: Any) -> OptimizerRead:
        kept = self.kept(optimizer)
        found = OptimizerRead(optimizer, kept, trained(optimizer), {}, {}, {})
        scalar = _scalars(kept)
        of = self._tensors.of
        for held, block in blocks(kept):
            name, tensor, parameter = held.name, held.tensor, held.parameter
            dtype, because = tensor.dtype, "block-wise"
            if block is None:
                if not dtype.is_floating_point:
                    continue
                if tensor.numel() == 1 and (parameter is None or parameter.numel() > 1 or name in scalar):
                    found.scalars.setdefault((name, dtype), []).append(tensor)
                    continue
                known = of(tensor)
                if self._is_master(held, known):
                    found.masters.setdefault(dtype, []).append(tensor)
                    continue
                because = "kahan" if known.compensates else ""
                if dtype is torch.float16 and "scaled" in (known.marks or ()) and self._has_scale(held, kept):
                    because = "block-wise"
            group = found.moments.get((because, dtype))
            if group is None:
                group = found.moments[because, dtype] = Moments({}, {}, [], [])
            group.names[name] = None
            group.tensors.append(tensor)
            if block:
                group.scales.extend(block)
            if parameter is not None:
                group.owners[id(parameter)] = parameter
        for key, tensor in group_tensors(optimizer):
            found.scalars.setdefault((key, tensor.dtype), []).append(tensor)
        return found

    @staticmethod
    def _has_scale(held: Held, kept: Iterable[Held]) -> bool:
        """Whether something smaller and wider is kept beside state that was divided before it was rounded."""
        size = held.tensor.numel()
        return any(o.box == held.box and o.tensor.dtype is torch.float32 and o.tensor.numel() < size for o in kept)

    @staticmethod
    def _is_master(held: Held, known: Record) -> bool:
        """Whether this is a sequence of weights: what parameters are copied from, or what began as a copy of one."""
        if known.is_master or "master" in held.name.lower():
            return True
        if not (known.copies_parameter and known.moved_by_optimizer):
            return False
        return held.parameter is not None and held.tensor.shape == held.parameter.shape


def made_at(tensors: Tensors, made: Iterable[Tensor]) -> Site | None:
    """The user's line that made the first of these that has one."""
    return next((site for site in (tensors.of(tensor).made_at for tensor in made) if site is not None), None)
