"""PA409: the logarithm of a softmax, a sigmoid or of exponentials, written out."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Mark, Tensor, float_constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

EXPONENTIALS: Mark[str] = Mark(lambda one, other: one if one == other else None)
"""Exponentials that nothing was subtracted from, "exp", or their sum: the formula that its logarithm makes."""


def listen(bus: Bus) -> None:
    bus.on("exp", _exponentials)
    bus.on("sum", lambda op: EXPONENTIALS.put(op.result, "log-sum-exp" if EXPONENTIALS.of(op.first) else None))
    bus.on("add", _plus_one)
    bus.on("log", _logarithm)
    bus.on("binary_cross_entropy", _on_probabilities, low_only=False)


def _exponentials(op: Op) -> None:
    if isinstance(op.first, Tensor) and op.first.op not in ("Subtract", "sub", "neg"):
        EXPONENTIALS.put(op.result, "exp")


def _plus_one(op: Op) -> None:
    (tensor, *more), ones = op.tensors, [value for value in op.plain if float_constant(value) == 1.0]
    EXPONENTIALS.put(op.result, "log1p-exp" if tensor.op == "exp" and ones and not more else None)


def _logarithm(op: Op) -> None:
    tensor, result = op.first, op.result
    if not isinstance(tensor, Tensor) or not isinstance(result, Tensor):
        return
    formula = EXPONENTIALS.of(tensor)
    if formula not in (None, "exp"):
        op.run.facts.add(Kind.OP, op.spot, result.dtype, op=formula)
    if tensor.op == "sigmoid" and "differentiable" in result.marks:
        op.run.facts.add(Kind.OP, op.spot, result.dtype, op="log-sigmoid-by-hand")


def _on_probabilities(op: Op) -> None:
    given = op.operand(0)
    if isinstance(given, Tensor) and given.low and "probabilities" in given.marks:
        spot, because = op.run.loss_built or op.spot, ("the probabilities were computed here", given.spot)
        op.run.facts.add(Kind.OP, spot, given.dtype, None, because, "", op="bce-on-probabilities")
