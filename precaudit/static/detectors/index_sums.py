"""PA405: rows that are summed by index in low precision, where the kernel rounds at each addition."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import NONE, Mark, Seq, Tensor, Value, constant, truth
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

CHOSEN: Mark[bool] = Mark(stays=True)
"""Indices that name each row once or a few times: a count, a permutation, an expert's tokens. A row is a sum of few."""


def listen(bus: Bus) -> None:
    bus.on("arange where nonzero topk argsort sort randperm unique", _chooses, low_only=False)
    bus.on("index_add_ index_add scatter_add_ scatter_add", _summed)
    bus.on("index_put_", lambda op: _summed(op) if truth(op.argument(3, "accumulate") or NONE) else None)
    bus.on("scatter_reduce_ scatter_reduce", lambda op: _summed(op) if _sums(op) else None)


def _chooses(op: Op) -> None:
    if op.name == "where" and len(op.operands) != 1:
        return
    for value in op.result.items if isinstance(op.result, Seq) else (op.result,):
        CHOSEN.put(value, True)


def _sums(op: Op) -> bool:
    return constant(op.argument(4, "reduce") or op.argument(3, "reduce")) in ("sum", "mean")


def _summed(op: Op) -> None:
    """Into zeros that are as old as this turn of the loop."""
    into, index = op.operand(0), op.argument(1, "indices") or op.argument(2, "index") or NONE
    if any(CHOSEN.of(value) for value in _indices(op, index)):
        return
    if isinstance(into, Tensor) and into.low and "created" in into.marks and into.loops == op.run.loops():
        because = ("it was made low here", into.origin or into.spot)
        op.run.facts.add(Kind.HOLDS, op.spot, into.dtype, Role.REDUCTION, because, "", pattern="running")


def _indices(op: Op, index: Value) -> list[Value]:
    """The tensors among an operation's arguments that say which rows are meant."""
    given = [*op.inputs, *(index.items if isinstance(index, Seq) else ())]
    return [value for value in given[1:] if isinstance(value, Tensor)]
