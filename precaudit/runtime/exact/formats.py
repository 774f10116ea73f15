"""Number formats that a tensor can be rounded into, by their published definitions, in float64 arithmetic.

float8 by tensor: one scale makes the largest element the format's largest number. MX: 32 elements share a power of two
(OCP Microscaling Formats v1.0, section 6.3). NVFP4: 16 elements share a float8_e4m3 scale, all of them a float32 one.
Sources: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf,
https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1,
https://docs.nvidia.com/cudnn/latest/operations/BlockScaling.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Element(NamedTuple):
    """How one number is stored."""

    mantissa: int
    lowest: int
    """The exponent of the smallest normal number; below it all numbers are equally far apart."""
    highest: int
    largest: float


E4M3 = Element(3, -6, 8, 448.0)
E5M2 = Element(2, -14, 15, 57344.0)
E2M1 = Element(1, 0, 2, 6.0)


class Format(NamedTuple):
    """How a tensor is stored."""

    element: Element
    scale: str
    """"none", "tensor", "mx" or "nv"."""
    block: int
    """Elements, along the dimension that a matmul sums over, that share a scale; 0 for all of them."""
    bits: float
    """Of one element, with its part of the scales."""


FORMATS: Mapping[str, Format] = {
    "float16": Format(Element(10, -14, 15, 65504.0), "none", 0, 16),
    "bfloat16": Format(Element(7, -126, 127, 3.3895313892515355e38), "none", 0, 16),
    "float8_e4m3": Format(E4M3, "tensor", 0, 8),
    "float8_e5m2": Format(E5M2, "tensor", 0, 8),
    "mxfp8": Format(E4M3, "mx", 32, 8.25),
    "mxfp4": Format(E2M1, "mx", 32, 4.25),
    "nvfp4": Format(E2M1, "nv", 16, 4.5),
}
TINY = 1e-300
"""Keeps a scale of nothing but zeros from dividing by zero."""


class Rounded(NamedTuple):
    """A tensor in a format, and what became of its elements."""

    values: Tensor
    """In float64."""
    flushed: Tensor
    """Elements that were not zero and are."""
    saturated: Tensor
    """Elements beyond the largest number, which they became; inf where the format has it."""


class Rounding:
    """Rounds to nearest, ties to even, or at random in proportion to the distance, by random numbers of its own."""

    def __init__(self, stochastic: bool = False) -> None:
        self._stochastic = stochastic
        self._generators: dict[torch.device, torch.Generator] = {}

    def into(self, name: str, wide: Tensor, dim: int = -1) -> Rounded:
        """The numbers of a float64 tensor in this format; blocks lie along `dim`."""
        kind = FORMATS[name]
        if not wide.numel():
            none = wide.new_zeros(())
            return Rounded(wide.clone(), none, none)
        blocks, back = _in_blocks(wide, kind.block, dim)
        scale = self._scale(kind, blocks)
        scaled = blocks / scale
        beyond = scaled.abs() > kind.element.largest * (1 + 1e-12)
        made = self.element(scaled, kind.element)
        if kind.scale == "none":
            limit = kind.element.largest + 2.0 ** (kind.element.highest - kind.element.mantissa - 1)
            made = torch.where(scaled.abs() >= limit, torch.copysign(torch.full_like(made, torch.inf), scaled), made)
        values = made * torch.where(scale <= TINY, torch.zeros_like(scale), scale)
        flushed = (values == 0) & (blocks != 0)
        return Rounded(back(values), flushed.sum(), beyond.sum())

    def element(self, wide: Tensor, kind: Element) -> Tensor:
        """Each number as the nearest one that such an element can be, at most the largest."""
        exponent = torch.frexp(wide).exponent - 1
        step = torch.ldexp(torch.ones_like(wide), exponent.clamp_(min=kind.lowest) - kind.mantissa)
        steps = wide / step
        return (
            ((steps + self._noise(wide)).floor() if self._stochastic else steps.round())
            .mul_(step)
            .clamp_(-kind.largest, kind.largest)
        )

    def _noise(self, like: Tensor) -> Tensor:
        generator = self._generators.get(like.device)
        if generator is None:
            generator = self._generators[like.device] = torch.Generator(like.device).manual_seed(0)
        return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    def _scale(self, kind: Format, blocks: Tensor) -> Tensor:
        """By what each block is divided before its elements are rounded."""
        if kind.scale == "none":
            return blocks.new_ones(())
        largest = blocks.abs().amax(-1, keepdim=True)
        if kind.scale == "tensor":
            return (largest.amax() / kind.element.largest).clamp_(min=TINY)
        if kind.scale == "mx":
            exponent = torch.frexp(largest).exponent - 1 - kind.element.highest
            exponent = torch.where(largest == 0, torch.zeros_like(exponent), exponent).clamp_(-127, 127)
            return torch.ldexp(torch.ones_like(largest), exponent)
        whole = (largest.amax() / (E4M3.largest * kind.element.largest)).clamp_(min=TINY)
        part = Rounding().element(largest / kind.element.largest / whole, E4M3)
        return (part * whole).clamp_(min=TINY)


def _in_blocks(wide: Tensor, size: int, dim: int) -> tuple[Tensor, Any]:
    """A tensor as rows of `size` elements that lie along `dim`, the last row filled up with zeros; and the way back."""
    if not size:
        return wide.reshape(1, -1), lambda rows: rows.reshape(wide.shape)
    moved = wide.movedim(dim, -1) if wide.dim() else wide.reshape(1)
    length = moved.shape[-1]
    filled = torch.nn.functional.pad(moved, (0, -length % size))

    def back(rows: Tensor) -> Tensor:
        found = rows.reshape(filled.shape)[..., :length]
        return found.movedim(-1, dim) if wide.dim() else found.reshape(())

    return filled.reshape(-1, size), back
