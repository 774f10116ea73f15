"""PA404: a softmax or log-softmax in low precision that a loss, a logarithm or a choice is made from."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.detectors import reaching
from precaudit.static.language.values import Dtypes, Mark, Spot, Tensor, constant
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch.autocast import table_for
from precaudit.static.overlays.torch.opnames import LOSSES, POINTWISE

SOFTMAX: Mark[tuple[Spot, Dtypes]] = Mark(stays=True)
"""Where the low softmax stands that these probabilities come from, and its dtype."""
LOGARITHM: Mark[bool] = Mark(stays=True)
"""Log-probabilities."""


LOG_TARGET: Mark[tuple[Spot, Dtypes]] = Mark(stays=True)
"""Where the low log-softmax stands, and its dtype, of which a loss may take the exponential."""
WITH_TARGETS = "cross_entropy kl_div mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy"


def _place(op: Op) -> tuple[Spot, Dtypes] | None:
    return (op.spot, op.result.dtype) if isinstance(op.result, Tensor) and op.result.dtype else None


def listen(bus: Bus) -> None:
    bus.on("softmax", _made)
    bus.on("sum mean log clamp clip sqrt", lambda op: SOFTMAX.put(op.result, SOFTMAX.of(op.first)))
    bus.on(POINTWISE, _combined)
    bus.on("topk multinomial", lambda op: _consumed(op, op.name), low_only=False)
    bus.on("log log_softmax", lambda op: _consumed(op, "log"), low_only=False)
    bus.on(LOSSES, lambda op: _consumed(op, "loss"), low_only=False)
    bus.on("log_softmax logsumexp", _logarithm)
    bus.on("log_softmax log nll_loss", lambda op: LOGARITHM.put(op.result, True), low_only=False)
    bus.on("neg", lambda op: LOGARITHM.put(op.result, LOGARITHM.of(op.first)), low_only=False)
    bus.on("mul einsum dot vdot tensordot", _factor, low_only=False)
    bus.on(WITH_TARGETS, _target, low_only=False)
    bus.on("log_softmax", lambda op: LOG_TARGET.put(op.result, _place(op)))
    bus.on("cross_entropy", _cross_entropy)
    bus.on("cross_entropy", _cross_entropy_inside, low_only=False)


def _made(op: Op) -> None:
    SOFTMAX.put(op.result, _place(op))


def _combined(op: Op) -> None:
    """Probabilities times something, or a sum with them; what is divided by them is not they."""
    tensors = op.tensors
    kept = tensors[:-1] if op.name in ("div", "divide", "true_divide") and len(tensors) > 1 else tensors
    SOFTMAX.put(op.result, next((found for found in map(SOFTMAX.of, kept) if found), None))


def _consumed(op: Op, feeds: str) -> None:
    tensor = op.operand(0)
    found = SOFTMAX.of(tensor) if isinstance(tensor, Tensor) else None
    if found is None or not isinstance(tensor, Tensor) or not tensor.low:
        return
    if feeds == "loss" or "differentiable" in tensor.marks:
        because = (f"it feeds {feeds} here", op.spot)
        op.run.facts.add(Kind.HOLDS, found[0], tensor.dtype, Role.SOFTMAX, because, "", feeds=feeds)


def _logarithm(op: Op) -> None:
    tensor, result = op.first, op.result
    if not isinstance(tensor, Tensor) or not isinstance(result, Tensor) or tensor.zero_dim:
        return
    if "differentiable" in result.marks:
        because = ("its input became low here", tensor.spot)
        op.run.facts.add(Kind.HOLDS, op.spot, result.dtype, Role.SOFTMAX, because, op.name, feeds="loss")


def _cross_entropy(op: Op) -> None:
    logits, result = op.operand(0), op.result
    if not isinstance(logits, Tensor) or not isinstance(result, Tensor):
        return
    if op.run.grad() and "differentiable" in logits.marks:
        because = ("its input became low here", logits.spot)
        detail = "cross_entropy is computed on them"
        op.run.facts.add(
            Kind.HOLDS, op.spot, result.dtype, Role.SOFTMAX, because, detail, feeds="loss", by="cross_entropy"
        )


def _cross_entropy_inside(op: Op) -> None:
    """CUDA's autocast gives a float32 loss of low logits, and takes their log_softmax as they are."""
    logits, region, reduction = op.operand(0), op.run.autocast(), op.argument(6, "reduction")
    if not isinstance(logits, Tensor) or not logits.low or op.low or region is None or region.enabled is not True:
        return
    if "cross_entropy" not in table_for(region.devices).low_inside or not op.run.grad():
        return
    dtype = next(iter(logits.dtype)) if logits.dtype and len(logits.dtype) == 1 else ""
    if "differentiable" in logits.marks and dtype:
        because = ("its input became low here", logits.spot)
        single = {"single": True} if constant(reduction) == "none" else {}
        op.run.facts.add(
            Kind.HOLDS, op.spot, logits.dtype, Role.SOFTMAX, because, "cross_entropy is computed on them",
            feeds="loss", by="cross_entropy", autocast=f"{dtype} on cuda", **single,
        )  # fmt: skip


def _factor(op: Op) -> None:
    """Probabilities that weigh a loss or log-probabilities, as in a distillation or an expectation."""
    for one, other in zip(op.tensors[:2], op.tensors[1::-1], strict=False):
        found = SOFTMAX.of(one)
        if found is not None and ("loss" in other.marks or LOGARITHM.of(other)):
            reaching.enters(op.result, reaching.Rounded(*found, _weighed))


def _weighed(op: Op, found: reaching.Rounded) -> None:
    because = ("a loss weighed by them is differentiated here", op.spot)
    op.run.facts.add(Kind.HOLDS, found.spot, found.dtype, Role.SOFTMAX, because, "", feeds="loss")


def _target(op: Op) -> None:
    """The target of a loss that is a softmax in low precision."""
    target = op.argument(1, "target")
    found = (SOFTMAX.of(target) or LOG_TARGET.of(target)) if target is not None else None
    if found is not None and op.run.grad():
        because = ("they are the target of a loss here", op.spot)
        op.run.facts.add(Kind.HOLDS, *found, Role.SOFTMAX, because, "", feeds="loss")
