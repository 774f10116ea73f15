"""PA404: a softmax or log-softmax in low precision that a loss, a logarithm or a choice is made from."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Mark, Spot, Tensor
from precaudit.static.overlays.events import Bus, Op
from precaudit.static.overlays.torch.opnames import LOSSES, POINTWISE

SOFTMAX: Mark[Spot] = Mark()
"""Where the low softmax stands that these probabilities come from."""


def listen(bus: Bus) -> None:
    bus.on("softmax", lambda op: SOFTMAX.put(op.result, op.spot))
    bus.on("sum mean log clamp clip sqrt", lambda op: SOFTMAX.put(op.result, SOFTMAX.of(op.first)))
    bus.on(POINTWISE, _combined)
    bus.on("topk multinomial", lambda op: _consumed(op, op.name), low_only=False)
    bus.on("log log_softmax", lambda op: _consumed(op, "log"), low_only=False)
    bus.on(LOSSES, lambda op: _consumed(op, "loss"), low_only=False)
    bus.on("log_softmax logsumexp", _logarithm)
    bus.on("cross_entropy", _cross_entropy)


def _combined(op: Op) -> None:
    """Probabilities times something, or a sum with them; what is divided by them is not they."""
    tensors = op.tensors
    kept = tensors[:-1] if op.name in ("div", "divide", "true_divide") and len(tensors) > 1 else tensors
    SOFTMAX.put(op.result, next((spot for spot in map(SOFTMAX.of, kept) if spot), None))


def _consumed(op: Op, feeds: str) -> None:
    tensor = op.operand(0)
    spot = SOFTMAX.of(tensor) if isinstance(tensor, Tensor) else None
    if spot is None or not isinstance(tensor, Tensor) or not tensor.low:
        return
    if feeds == "loss" or "differentiable" in tensor.marks:
        because = (f"it feeds {feeds} here", op.spot)
        op.torch.facts.add(Kind.HOLDS, spot, tensor.dtype, Role.SOFTMAX, because, "", feeds=feeds)


def _logarithm(op: Op) -> None:
    tensor, result = op.first, op.result
    if not isinstance(tensor, Tensor) or not isinstance(result, Tensor) or tensor.zero_dim:
        return
    if "differentiable" in result.marks:
        because = ("its input became low here", tensor.spot)
        op.torch.facts.add(Kind.HOLDS, op.spot, result.dtype, Role.SOFTMAX, because, op.name, feeds="loss")


def _cross_entropy(op: Op) -> None:
    logits, result = op.operand(0), op.result
    if not isinstance(logits, Tensor) or not isinstance(result, Tensor):
        return
    if op.torch.grad() and "differentiable" in logits.marks:
        because = ("its input became low here", logits.spot)
        detail = "cross_entropy is computed on them"
        op.torch.facts.add(
            Kind.HOLDS, op.spot, result.dtype, Role.SOFTMAX, because, detail, feeds="loss", by="cross_entropy"
        )
