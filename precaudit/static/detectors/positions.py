"""PA408: positions, counts and noise schedules in a dtype that has no number for each of them."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Dtypes, Spot, Tensor, is_float
from precaudit.static.overlays.events import Bus, Op


def listen(bus: Bus) -> None:
    bus.on("sin cos", _angle, low_only=False)
    bus.on("cumprod sqrt rsqrt pow", _schedule)
    bus.on("cumsum cumprod", _running_count)
    bus.on("long int short to type", _index, low_only=False)


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
    if tensor.low and result.dtype and tensor.low_at is not None and {"positions", "created"} <= tensor.marks:
        _report(op, tensor.low_at, tensor.dtype, ("they become integers here", op.spot), "positions are indices")


def _report(op: Op, spot: Spot, dtype: Dtypes | None, because: tuple[str, Spot | None], detail: str) -> None:
    op.torch.facts.add(Kind.HOLDS, spot, dtype, Role.POSITIONS, because, detail, representable=False)
