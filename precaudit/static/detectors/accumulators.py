"""PA101, PA103, PA208, PA301, PA304, PA402 and PA405: values that are updated from themselves in low precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.detectors import averages
from precaudit.static.detectors.gradient_norms import NORM, SQUARE
from precaudit.static.language.values import (
    Dtypes,
    Mark,
    Param,
    Spot,
    Tensor,
    Value,
    is_low,
)
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op, Update
from precaudit.static.overlays.torch import handwritten, operands
from precaudit.static.overlays.torch.opnames import LIKE, NEW

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

STATISTICS = re.compile(r"(?:running|moving)_(?:mean|var|std)")
"""What buffers of a normalisation written by hand are called."""


DELTA: Mark[bool] = Mark(stays=True)
"""A difference of weights: what an outer optimizer takes for a gradient."""


def listen(bus: Bus) -> None:
    bus.on("sub", _difference, low_only=False)
    bus.on("neg mul div", lambda op: DELTA.put(op.result, DELTA.of(op.first)), low_only=False)
    bus.on_update(_updated)
    bus.on("recurrence", _recurrence)


def _updated(update: Update) -> None:
    """Something is written from itself: a parameter, a buffer, or a low tensor."""
    run, target = update.run, update.target
    if isinstance(target, Param):
        _parameter_updated(update, target)
    elif isinstance(target, Tensor) and target.low and _keeps(update, target):
        # A copy is an update where what is copied was computed from the target.
        how = "add" if update.how == "copy" else update.how
        marks = operands.marks_of([operands.as_tensor(run, a) for a in update.added])
        if "gradient" in marks:
            _takes_gradients(update, target, how, marks)
        else:
            _takes_values(update, target, how, marks)


def _parameter_updated(update: Update, target: Param) -> None:
    run, _, added, node, how, _ = update
    if target.store.get("kind") != "buffer" or not is_low(target.dtype) or how not in ("add", "sub", "lerp"):
        averages.parameter_written(run, target, how, added, node)
    elif "learnt" in operands.marks_of([operands.as_tensor(run, a) for a in added]):
        averages.average(run, target.dtype, target.store.get("spot") or run.spot(node), node)
    else:
        _buffer(run, target, node)


def _keeps(update: Update, target: Tensor) -> bool:
    """Whether the target is kept by the script itself: no part of a forward pass, of an optimizer, of gradients."""
    run = update.run
    if update.how == "copy" and not any(_comes_from(a, target) for a in update.added):
        return False
    if run.interpreter.inside("forward") and not update.kept:
        return False
    if "gradient" in target.marks and "created" not in target.marks:
        return False
    return handwritten.current_optimizer(run) is None and not handwritten.compensating(run)


def _comes_from(value: Value, target: Tensor) -> bool:
    return isinstance(value, Tensor) and any(part is target for part in value.parts)


def _takes_gradients(update: Update, target: Tensor, how: str, marks: frozenset[str]) -> None:
    """Gradients are added to it: a step that is taken by hand, a norm of them, a moment, or their sum."""
    run, _, added, node, _, _ = update
    if not target.marks & {"created", "differentiable"}:
        return  # who knows what, perhaps a leaf that the loop perturbs
    spot = _of_its_own(target) or target.spot or run.spot(node)
    if "differentiable" in target.marks:
        # A leaf that the loop itself trains, or perturbs: not a buffer for its gradients.
        if how in ("add", "sub", "addcdiv") and "ratio" not in marks and _older(run, target):
            averages.trained_by_hand(run, target.dtype, spot, node)
        return
    if target.zero_dim and any(SQUARE.of(a) or NORM.of(a) for a in added):
        return  # a norm of the gradients, not their sum
    decays = "decayed" in target.marks or how in ("lerp", "addcmul")
    summed = Role.GRADIENT_NORM if target.zero_dim else Role.GRADIENT_ACCUMULATION
    role = Role.OPTIMIZER_STATE if decays else summed
    own: dict[str, Any] = {"own": True} if decays else {}
    run.facts.add(Kind.HOLDS, spot, target.dtype, role, ("gradients are added here", run.spot(node)), "", **own)


def _takes_values(update: Update, target: Tensor, how: str, marks: frozenset[str]) -> None:
    """Anything else is added to it: steps of an outer optimizer, weights to an average, whatever is counted."""
    run, _, added, node, _, attribute = update
    spot = target.origin or target.spot or run.spot(node)
    nears = how == "sub" and any(_comes_from(a, target) for a in added)
    if _takes_a_step(target, added):
        because = ("differences of weights are added here", run.spot(node))
        run.facts.add(Kind.HOLDS, spot, target.dtype, Role.OPTIMIZER_STATE, because, "")
    elif "weights" in marks and target.marks & {"weights", "created"} and (how in ("add", "lerp") or nears):
        if "differentiable" not in marks or "detached" in marks or not run.grad():
            averages.average(run, target.dtype, spot, node)
    elif "created" not in target.marks or how not in ("add", "sub", "lerp") or _of_this_pass(run, marks):
        return
    elif not (attribute or target.zero_dim or "single" in target.marks or any(isinstance(a, Tensor) for a in added)):
        return  # a number, or who knows what, added to each element of a work space: not a counter
    elif _lasting(run, target, attribute):
        _long_lived(run, target.dtype, target.spot, _of_its_own(target), node)


def _difference(op: Op) -> None:
    both = [t for t in op.tensors if "weights" in t.marks]
    if len(op.tensors) == 2 and len(both) == 2:
        DELTA.put(op.result, True)


def _takes_a_step(target: Tensor, added: list[Value]) -> bool:
    """Whether differences of weights, none of them from the target itself, are added to storage that was created."""
    deltas = [value for value in added if isinstance(value, Tensor) and DELTA.of(value)]
    return bool(deltas) and "created" in target.marks and not any(p is target for d in deltas for p in d.parts)


def _recurrence(op: Op) -> None:
    """A recurrence keeps its running value low at each step."""
    if isinstance(op.result, Tensor):
        op.run.facts.add(Kind.HOLDS, op.spot, op.result.dtype, Role.REDUCTION, None, "", pattern="running")


def _of_this_pass(run: Run, marks: frozenset[str]) -> bool:
    """Whether what is added belongs to one forward pass: activations that are summed, not a loss that is logged."""
    return "differentiable" in marks and "loss" not in marks and run.grad()


def _lasting(run: Run, target: Tensor, attribute: bool) -> bool:
    """Whether it is older than the present turn of a loop."""
    now, then = run.loops(), target.loops
    return attribute or (len(now) >= len(then) and now != then)


def _older(run: Run, target: Tensor) -> bool:
    """Whether it is older than the present turn of the outermost loop."""
    now = run.loops()[:1]
    return bool(now) and now != target.loops[:1]


def _of_its_own(tensor: Tensor) -> Spot | None:
    """Where its dtype was written, unless it has the dtype of another tensor."""
    return None if tensor.op in LIKE | NEW else tensor.origin


def _buffer(run: Run, buffer: Param, node: Any) -> None:
    if not STATISTICS.fullmatch(buffer.store.get("name") or ""):
        _long_lived(run, buffer.dtype, buffer.store.get("spot"), buffer.store.get("origin"), node)
        return
    run.facts.add(
        Kind.HOLDS,
        buffer.store.get("spot") or run.spot(node),
        buffer.dtype,
        Role.NORM_RUNNING_STATISTICS,
        ("they are updated here", run.spot(node)),
    )


def _long_lived(run: Run, dtype: Dtypes | None, spot: Spot | None, origin: Spot | None, node: Any) -> None:
    run.facts.add(
        Kind.HOLDS,
        origin or spot or run.spot(node),
        dtype,
        Role.ACCUMULATOR,
        ("it is updated from itself here", run.spot(node)),
        "",
        what="running",
    )
