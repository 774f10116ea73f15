"""Some elements of a large result, and the arguments that make them: rows of a matmul, elements of a pointwise op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .recipes import Recipe, plainly

LARGE = 1 << 15
"""Elements of a result from which on only some are computed once more."""
ROWS = 32
"""Rows of a matmul that are computed once more, at least."""
ELEMENTS = 1 << 14
"""Elements of another result that are, at least."""
MATMULS: dict[str, tuple[int, int]] = {"mm": (0, 0), "addmm": (1, 0), "bmm": (0, 1), "baddbmm": (1, 1)}
"""Op -> where its first operand stands, and the dimension of its rows."""

Pick = Callable[[Tensor], Tensor]
"""Takes the same elements of each tensor that is laid out as the result."""


class Thin(NamedTuple):
    """The arguments of an op for some elements of its result."""

    args: list[Any]
    pick: Pick


def thinned(recipe: Recipe, args: Any, kwargs: Any, result: Tensor) -> Thin | None:
    """Arguments that give every so many elements of the result alone; None where all have to be computed for that."""
    if result.numel() < LARGE or kwargs or recipe.run is not plainly:
        return None
    if recipe.name in MATMULS:
        return _rows(recipe.name, args, result)
    return _elements(args, result) if recipe.pointwise and recipe.tensors is not None else None


def _rows(name: str, args: Any, result: Tensor) -> Thin | None:
    at, dim = MATMULS[name]
    step = result.size(dim) // ROWS
    if step < 2:
        return None

    def pick(tensor: Tensor) -> Tensor:
        return tensor[::step] if dim == 0 else tensor[:, ::step]

    thin = list(args)
    thin[at] = pick(args[at])
    if at and args[0].dim() == result.dim() and args[0].size(dim) == result.size(dim):
        thin[0] = pick(args[0])  # what is added to the product
    return Thin(thin, pick)


def _elements(args: Any, result: Tensor) -> Thin | None:
    step = result.numel() // ELEMENTS
    tensors = [one for one in args if isinstance(one, Tensor) and one.dim()]
    if step < 2 or not all(one.shape == result.shape and one.is_contiguous() for one in (*tensors, result)):
        return None

    def pick(tensor: Tensor) -> Tensor:
        return tensor.view(-1)[::step]

    return Thin([pick(one) if isinstance(one, Tensor) and one.dim() else one for one in args], pick)
