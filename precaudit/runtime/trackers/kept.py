"""What an update left of the exact step: five sums for each tensor, computed for many tensors at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .samples import sums


class Numbers(NamedTuple):
    """What one tensor kept of an update."""

    should_move: float
    """Elements that float32 would have changed."""
    stuck: float
    """Those of them whose bits did not change."""
    error2: float
    """The squared norm of what was kept less the exact result."""
    step2: float
    """The squared norm of the exact step."""
    exact2: float
    """The squared norm of the exact result. Not finite, as are the others, where the tensor holds inf or nan."""


@dataclass(slots=True)
class Totals:
    """Numbers summed over tensors and steps."""

    should_move: float = 0.0
    stuck: float = 0.0
    error2: float = 0.0
    step2: float = 0.0
    exact2: float = 0.0
    infinite: int = 0
    """Times a tensor held inf or nan, and was not measured."""

    def add(self, numbers: Numbers) -> None:
        if math.isfinite(numbers.error2) and math.isfinite(numbers.step2):
            self.should_move += numbers.should_move
            self.stuck += numbers.stuck
            self.error2 += numbers.error2
            self.step2 += numbers.step2
            self.exact2 += numbers.exact2
        else:
            self.infinite += 1

    def join(self, other: Totals) -> None:
        self.should_move += other.should_move
        self.stuck += other.stuck
        self.error2 += other.error2
        self.step2 += other.step2
        self.exact2 += other.exact2
        self.infinite += other.infinite


def columns(exact: Tensor, before: Tensor, after: Tensor, sizes: list[int]) -> list[Tensor]:
    """Sums for each tensor, by column, as `rows` reads them; the tensors lie one after the other in these flat ones.

    `exact` and `before` are wide, `after` is as the program keeps it.
    """
    wide = after.to(exact.dtype)
    should = _differ(exact, before)
    moved = _differ(wide, before).mul_(should)
    each = [should, moved, *((x - y).square_() for x, y in ((exact, wide), (exact, before))), exact.square()]
    return [sums(column, sizes) for column in each]


def rows(values: list[float], stand_for: list[float]) -> list[Numbers]:
    """The numbers of each tensor, from the five columns read one after the other, and what each element stands for."""
    count = len(stand_for)
    found = []
    for at, of in enumerate(stand_for):
        should, moved, *squares = values[at::count]
        found.append(Numbers(of * should, of * (should - moved), *(of * value for value in squares)))
    return found


def shares(exact: Tensor, before: Tensor, after: Tensor, sizes: list[int]) -> list[Tensor]:
    """Of each tensor, how many elements should have moved, and how many of these did: inf and nan do neither."""
    should, step = _differ(exact, before), exact - before
    should.mul_(step.sub_(step).eq_(0.0))
    moved = _differ(after.to(exact.dtype), before).mul_(should)
    return [sums(should, sizes), sums(moved, sizes)]


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """1 where they differ and 0 elsewhere, as numbers: to count what is bool takes ten times as long."""
    return torch.ne(one, other, out=torch.empty_like(one))
