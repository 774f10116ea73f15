"""Values that are written from themselves: what that makes of them, told to the detectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import Const, Number, Param, Tensor, Value
from precaudit.static.overlays.events import Update
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def update(run: Run, target: Value, added: list[Value], node: Any, how: str, kept: bool) -> None:
    """Tells that a tensor or a parameter was written from itself."""
    target = operands.as_tensor(run, target) if not isinstance(target, Param) else target
    run.training.updated |= "gradient" in operands.marks_of([operands.as_tensor(run, a) for a in added])
    run.bus.tell_update(Update(run, target, added, node, how, kept))


def begun(run: Run, before: Value, after: Tensor) -> Tensor:
    """A sum of logged values that begins at a number, `total = 0.0`, has its storage from its first term."""
    if not isinstance(before, (Const, Number)) or not after.low or not after.zero_dim:
        return after
    if "gradient" in after.marks or ("differentiable" in after.marks and run.grad()):
        return after
    return replace(after, marks=after.marks | {"created"})
