"""PA209: gradients are clipped or divided by a norm of theirs that was computed in low precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Dtypes, Mark, Spot, Tensor, Value
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


class Norm(NamedTuple):
    spot: Spot
    dtype: Dtypes
    squared: Spot | None


SQUARE: Mark[Spot] = Mark()
"""Where these gradients were squared."""
NORM: Mark[Norm] = Mark(stays=True)
"""The norm that this is, or is made from."""


def listen(bus: Bus) -> None:
    GradientNorms(bus)


class GradientNorms:
    """A norm that is only printed says nothing; one read as a Python number counts once gradients are multiplied."""

    def __init__(self, bus: Bus) -> None:
        self._numbers: list[Norm] = []
        self._scaled = False
        bus.on("square pow mul", self._squared)
        bus.on("sum norm vector_norm", self._made)
        bus.on("stack cat sum norm vector_norm sqrt pow add mul max maximum square clamp", self._passed, low_only=False)
        bus.on("div divide true_divide", lambda op: self._used(op, op.operand(1)), low_only=False)
        bus.on("reciprocal rsqrt", lambda op: self._used(op, op.first), low_only=False)
        bus.on("item", self._read, low_only=False)
        bus.on("mul_ div_", self._changed, low_only=False)
        bus.on_end(self._end)

    def _squared(self, op: Op) -> None:
        tensors = op.tensors
        by_itself = op.name != "mul" or (len(tensors) == 2 and tensors[0].spot is tensors[1].spot is not None)
        if by_itself and "gradient" in tensors[0].marks:
            SQUARE.put(op.result, op.spot)

    def _made(self, op: Op) -> None:
        tensor, result = op.first, op.result
        if not isinstance(tensor, Tensor) or not isinstance(result, Tensor) or "gradient" not in result.marks:
            return
        square = SQUARE.of(tensor)
        if result.dtype and NORM.of(tensor) is None and (square is not None or op.name != "sum"):
            NORM.put(result, Norm(op.spot, result.dtype, square))

    def _passed(self, op: Op) -> None:
        known = NORM.of(op.result) or next((norm for norm in map(NORM.of, op.tensors) if norm), None)
        NORM.put(op.result, known)

    def _used(self, op: Op, divisor: Value) -> None:
        norm = NORM.of(divisor)
        if norm is not None:
            _report(op.run, norm)

    def _read(self, op: Op) -> None:
        norm = NORM.of(op.first)
        if norm is not None:
            self._numbers.append(norm)

    def _changed(self, op: Op) -> None:
        if isinstance(op.first, Tensor) and "gradient" in op.first.marks:
            self._scaled = True

    def _end(self, run: Run) -> None:
        for norm in self._numbers if self._scaled else ():
            _report(run, norm)


def _report(run: Run, norm: Norm) -> None:
    because = ("squared here", norm.squared)
    kernel = norm.squared is None
    past = "a norm past 65504 is inf" if kernel else "squares and their sum overflow past 65504"
    detail = past if norm.dtype == frozenset({"float16"}) else ""
    run.facts.add(Kind.HOLDS, norm.spot, norm.dtype, Role.GRADIENT_NORM, because, detail)
