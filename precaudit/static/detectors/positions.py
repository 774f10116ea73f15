"""PA408: positions, counts and noise schedules in a dtype that has no number for each of them."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Dtypes, Mark, Spot, Tensor, float_constant, is_float
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run

ARITHMETIC = "add sub mul div outer stack cat"
"""What positions are computed with; where they are only compared, none of it matters."""


COUNTED: Mark[float] = Mark(stays=True)
"""Whole numbers in a row, up to which."""
TOO_MANY: Mark[tuple[Spot, Dtypes]] = Mark()
"""Where they came into a dtype that does not hold each of them, and that dtype."""
EXACT = {"bfloat16": 256, "float16": 2048}


def listen(bus: Bus) -> None:
    bus.on("arange", _counted, low_only=False)
    bus.on("to half bfloat16 type type_as", _cast)
    Coordinates(bus)
    bus.on("sin cos", _angle, low_only=False)
    bus.on("cumprod sqrt rsqrt pow", _schedule)
    bus.on("cumsum cumprod", _running_count)
    bus.on("long int short byte char to type type_as", _index, low_only=False)


def _counted(op: Op) -> None:
    numbers = [float_constant(value) for value in op.operands[:3]]
    step = numbers[2] if len(numbers) == 3 else 1.0
    if isinstance(op.result, Tensor) and numbers and None not in numbers and step == 1.0:
        COUNTED.put(op.result, max(abs(number) for number in numbers[:2] if number is not None))
        TOO_MANY.put(op.result, _rounded(op))


def _cast(op: Op) -> None:
    COUNTED.put(op.result, COUNTED.of(op.first))
    TOO_MANY.put(op.result, TOO_MANY.of(op.first) or _rounded(op))


def _rounded(op: Op) -> tuple[Spot, Dtypes] | None:
    last = COUNTED.of(op.result)
    if last is None or not isinstance(op.result, Tensor) or not op.result.low or not op.result.dtype:
        return None
    return (op.spot, op.result.dtype) if all(last > EXACT.get(name, last) for name in op.result.dtype) else None


class Coordinates:
    """Positions that do not fit and are computed with, as coordinates or offsets; told where anything trains."""

    def __init__(self, bus: Bus) -> None:
        self._found: list[tuple[Spot, Dtypes, Spot]] = []
        bus.on(ARITHMETIC, self._computed, low_only=False)
        bus.on_end(self._end)

    def _computed(self, op: Op) -> None:
        found = next((found for found in map(TOO_MANY.of, op.tensors) if found), None)
        if found is not None and not op.run.in_a_test_alone():
            self._found.append((*found, op.spot))

    def _end(self, run: Run) -> None:
        for spot, dtype, computed in self._found if run.training.in_earnest else ():
            because, detail = ("they are computed with here", computed), "positions are coordinates"
            run.facts.add(Kind.HOLDS, spot, dtype, Role.POSITIONS, because, detail, representable=False)


def _angle(op: Op) -> None:
    """They are low, or were before they were cast up again."""
    tensor = op.first
    if not isinstance(tensor, Tensor) or not tensor.marks & {"positions", "schedule"}:
        return
    was = frozenset(mark.removeprefix("was:") for mark in tensor.marks if mark.startswith("was:"))
    if tensor.low or was:
        because = ("they feed sin or cos here", op.spot)
        detail = "positions and frequencies feed sin and cos"
        _report(op, tensor.low_at or op.spot, tensor.dtype if tensor.low else was, because, detail)


def _schedule(op: Op) -> None:
    """1 - beta of a noise schedule stands within 2**-8 of 1, where bfloat16 has two values."""
    tensor, result = op.first, op.result
    if isinstance(tensor, Tensor) and isinstance(result, Tensor) and "schedule" in result.marks:
        because = ("it is multiplied up or its root is taken here", op.spot)
        _report(op, tensor.low_at or op.spot, result.dtype, because, "a noise schedule loses its steps near 0 and 1")


def _running_count(op: Op) -> None:
    tensor, result = op.first, op.result
    if isinstance(tensor, Tensor) and isinstance(result, Tensor) and "counts" in tensor.marks:
        last = "2048" if result.dtype == frozenset({"float16"}) else "256"
        because = ("integers were cast here", tensor.spot)
        _report(op, op.spot, result.dtype, because, f"a running count is exact only up to {last}")


def _index(op: Op) -> None:
    """Positions that were counted out low become integers again: some of them twice, some never."""
    tensor, result = op.first, op.result
    if not isinstance(tensor, Tensor) or not isinstance(result, Tensor) or is_float(result.dtype):
        return
    if tensor.low and "cumulated" in tensor.marks:
        spot = tensor.low_at or tensor.spot or op.spot
        _report(op, spot, tensor.dtype, ("they become integers here", op.spot), "")
    elif tensor.low and result.dtype and tensor.low_at is not None and {"positions", "created"} <= tensor.marks:
        _report(op, tensor.low_at, tensor.dtype, ("they become integers here", op.spot), "positions are indices")


def _report(op: Op, spot: Spot, dtype: Dtypes | None, because: tuple[str, Spot | None], detail: str) -> None:
    if op.run.in_a_test_alone():
        return
    op.run.facts.add(Kind.HOLDS, spot, dtype, Role.POSITIONS, because, detail, representable=False)
