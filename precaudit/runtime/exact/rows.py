"""What each operation lost: its own error, the error it was given, and how much it made of it; a row for each line.

Errors are norms, relative to the norm of the exact result. They stay on the device until many can be read at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Site
from .companions import wide

MANY = 4096
"""Numbers that are read together."""
SAMPLE = 1 << 16
"""Elements of a larger tensor that are compared."""
NIL = 1e-6
"""An exact result smaller than this share of the real one is zero: no relative error is made of it."""
GIVEN_ONLY, ALONE = 3, 6
"""Numbers of a tensor without and with what float64 makes of the same inputs."""
GIVEN = 1e-14
"""A smaller error is float64's own; nothing is said of what becomes of it."""


FIRST = 4
"""Times that an operation on a line is looked at; from then on the 8th, the 16th, and so on."""
MAGNIFIES = 4.0
"""A factor up to which errors grow in any computation: a square doubles them, the root after it halves them again."""


class Key(NamedTuple):
    """What a row counts together."""

    site: Site | None
    module: str
    operation: str
    dtype: str
    phase: str


class Row:
    """One operation on one line."""

    __slots__ = ("added", "amplification", "distance", "local", "loss", "sound", "times")

    def looks(self) -> bool:
        """Whether this time is one of those whose numbers are taken: each of the first few, later ever fewer."""
        self.times += 1
        return self.times <= FIRST or self.times & (self.times - 1) == 0

    def __init__(self) -> None:
        self.times = 0
        self.local = 0.0
        """Error of the op itself: its result against float64's on the same inputs. The worst of all times, as below."""
        self.distance = 0.0
        """Error of its result against the exact one."""
        self.amplification = 0.0
        """What the error it was given became, as a factor."""
        self.sound: bool | None = None
        """Its own error is known; False where something that it gave was inf or NaN."""
        self.loss = 0.0
        """Of a low softmax, how far its own error moved the loss, as a share of that."""
        self.added = 0.0
        """What was lost here: its own error, or, of an op that magnifies errors, all that its result has beyond its
        inputs. By this the rows are ordered."""


class Waiting(NamedTuple):
    """Numbers on a device that are not read yet."""

    row: Row
    record: int
    given: list[int]
    """The records of what it read."""
    tensors: int
    """It gave so many, each with so many numbers."""
    kinds: int


class Rows:
    """All operations of the step."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Row] = {}
        self.distances: list[float] = []
        """Record -> the relative error of what the operation gave."""
        self._waiting: list[Waiting] = []
        self._numbers: list[Tensor] = []
        self._records = 0

    def row(self, key: Key) -> Row:
        """The row of one operation on one line."""
        found = self.by_key.get(key)
        if found is None:
            found = self.by_key[key] = Row()
        return found

    def add(
        self, row: Row, reals: Sequence[Tensor], exacts: list[Tensor], alone: list[Tensor] | None, given: list[int]
    ) -> int:
        """Books one operation: what it gave, what it should have, and, unless that is not looked at this time, what
        float64 makes of the inputs as they were. Returns its record."""
        numbers = _norms(reals, exacts, alone)
        self._numbers += numbers
        record, self._records = self._records, self._records + 1
        self._waiting.append(Waiting(row, record, given, len(numbers), ALONE if alone is not None else GIVEN_ONLY))
        if len(self._numbers) >= MANY:
            self.settle()
        return record

    def settle(self) -> None:
        """Reads what is on the device."""
        by_device: dict[Any, list[Tensor]] = {}
        for number in self._numbers:
            by_device.setdefault(number.device, []).append(number)
        read = {device: iter(torch.cat(held).tolist()) for device, held in by_device.items()}
        numbers = iter(self._numbers)
        waiting, self._waiting, self._numbers = self._waiting, [], []
        for one in waiting:
            values = (read[next(numbers).device] for _ in range(one.tensors))
            self._book(one, [next(held) for held in values for _ in range(one.kinds)])

    def _book(self, one: Waiting, numbers: list[float]) -> None:
        kinds = one.kinds
        whole = [math.hypot(*numbers[at::kinds]) for at in range(kinds)]
        error, size, real = whole[:3]
        distance = relative(error, size, real)
        self.distances.append(distance)
        row = one.row
        if not math.isfinite(real):
            row.sound = False
        if not math.isfinite(distance):
            return
        row.distance = max(row.distance, distance)
        if kinds == GIVEN_ONLY:
            return
        local, own, passed = whole[3:]
        given = max((self.distances[at] for at in one.given if at >= 0), default=0.0)
        mine = _finite(relative(local, own, real))
        magnified = 0.0
        if given > GIVEN and math.isfinite(given):
            magnified = _finite(relative(passed, size, real) / given)
        row.sound = row.sound is not False
        row.local = max(row.local, mine)
        row.amplification = max(row.amplification, magnified)
        row.added = max(row.added, mine, distance - given if magnified > MAGNIFIES else 0.0)


def relative(error: float, size: float, real: float) -> float:
    """An error as a share of the exact size; inf where there is none to compare with, 0 where both are nothing."""
    if not error:
        return 0.0
    return error / size if size > NIL * real else math.inf


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _norms(reals: Sequence[Tensor], exacts: list[Tensor], alone: list[Tensor] | None) -> list[Tensor]:
    """For each tensor the norms of real less exact, exact, real; with `alone` also of real less alone, alone, alone
    less exact. In as few calls as can be: most tensors are small."""
    found = []
    for at, real in enumerate(reals):
        together = _some([real, exacts[at]] if alone is None else [real, exacts[at], alone[at]])
        combined = _combinations(len(together), real.device) @ torch.stack(together).view(len(together), -1)
        found.append(torch.linalg.vector_norm(combined, dim=1))
    return found


@cache
def _combinations(count: int, device: torch.device) -> Tensor:
    """The differences that are measured, as a matrix."""
    rows = [[1, -1, 0], [0, 1, 0], [1, 0, 0], [1, 0, -1], [0, 0, 1], [0, -1, 1]]
    wanted = rows if count == 3 else [row[:2] for row in rows[:GIVEN_ONLY]]
    return torch.tensor(wanted, dtype=torch.float64, device=device)


def _some(tensors: list[Tensor]) -> list[Tensor]:
    """The same elements of each, in float64: all of them, or of many every so many, where they lie in one order."""
    first = tensors[0]
    stride = first.numel() // SAMPLE
    if stride > 1 and all(one.is_contiguous() for one in tensors):
        tensors = [one.view(-1)[::stride] for one in tensors]
    wides = [wide(tensors[0]), *tensors[1:]]
    return [torch.view_as_real(one) for one in wides] if first.is_complex() else wides
