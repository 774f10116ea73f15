"""Looks at the elements of a tensor: at most 65,536 of each, evenly strided; all of them under `--values full`.

Nothing here draws a random number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

SAMPLE = 65_536
LONG = 1 << 15
"""From so many elements on a tensor is looked at by itself."""
MANY = 1 << 16
"""Elements of shorter ones that are looked at together: what is computed of so many stays in a core's cache."""
_limits = {"off": 0, "sample": SAMPLE, "full": sys.maxsize}
_limit = SAMPLE


def look_at(values: str) -> None:
    """Sets how many elements of a tensor are looked at: "off", "sample" or "full"."""
    global _limit
    _limit = _limits[values]


def limit() -> int:
    """How many elements of one tensor may be looked at; 0 where nothing is measured."""
    return _limit


def stride(elements: int) -> int:
    """Of so many elements every which one is looked at; an odd number, so that the columns of a matrix take turns."""
    return 1 if elements <= _limit else -(-elements // _limit) | 1


def sample(tensor: Tensor) -> Tensor | None:
    """At most `limit()` elements, evenly strided, flat; None where none are wanted or the whole would be copied."""
    if not _limit:
        return None
    if tensor.numel() <= _limit:
        return tensor.detach().reshape(-1)
    if not tensor.is_contiguous():
        return None
    return tensor.detach().view(-1)[:: stride(tensor.numel())]


def batches(sizes: Iterable[int]) -> Iterator[list[int]]:
    """Indices of tensors with these numbers of elements: the long ones each alone, many short ones together."""
    together: list[int] = []
    room = MANY
    for index, size in enumerate(sizes):
        if size >= LONG:
            yield [index]
            continue
        if size > room:
            yield together
            together, room = [], MANY
        together.append(index)
        room -= size
    if together:
        yield together


def sums(flat: Tensor, sizes: list[int]) -> Tensor:
    """The sum of each of these many neighbouring stretches of a flat tensor."""
    if len(sizes) == 1:
        return flat.sum().reshape(1)
    lengths = torch.tensor(sizes, device=flat.device)
    return torch.segment_reduce(flat, "sum", lengths=lengths, unsafe=True)


def underflow(tensor: Tensor) -> list[Tensor]:
    """Of the sampled elements: zeros, subnormals, finite ones that are not zero, their norm; 0-d tensors, no sync."""
    if not _limit:
        return []
    values = sample(tensor)
    if values is None:
        values = tensor.detach().reshape(-1)[:_limit]
    size = values.abs()
    nonzero = (size > 0) & torch.isfinite(values)
    subnormal = nonzero & (size < torch.finfo(values.dtype).smallest_normal)
    norm = torch.where(nonzero, values, 0).float().norm()
    return [(size == 0).sum(), subnormal.sum(), nonzero.sum(), norm]


def nonfinite(tensor: Tensor) -> list[Tensor]:
    """Sampled elements that are inf or nan, sampled elements, and the largest magnitude; 0-d tensors, no sync."""
    if not _limit:
        return []
    values = sample(tensor)
    if values is None:
        values = tensor.detach().reshape(-1)[:_limit]
    bad = ~torch.isfinite(values)
    largest = torch.where(bad, torch.zeros_like(values), values).abs().amax().float()
    return [bad.sum(), torch.full_like(largest, values.numel()), largest]
