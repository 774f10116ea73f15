"""PA706: hand-written autograd functions under autocast."""

from __future__ import annotations

import re

from precaudit.model.vocabulary import Kind
from precaudit.static.language import classes
from precaudit.static.language.values import Class, Function, Spot, Tensor
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op

ELIGIBLE = re.compile(r"[\w)\]]\s*@\s*[\w(]|\.(?:mm|bmm|matmul|addmm|baddbmm|mv)\(|\b(?:linear|conv[123]d|einsum)\(")
"""Operations that autocast casts."""
CARE = re.compile(
    r"custom_fwd|custom_bwd|autocast|\.to\((?![^()]*device[^(),]*\))|\.float\(|\.type_as\(|\.type\(|\.half\(|\.bfloat16\("
)
"""Signs that the dtypes are looked after by hand."""

RUNS_AGAIN = re.compile(r"\benable_grad\(\)")
"""How a backward says that it computes the forward pass a second time."""
REGION = re.compile(r"autocast|custom_bwd")


def listen(bus: Bus) -> None:
    bus.on("autograd.Function", _applied, low_only=False)


def _applied(op: Op) -> None:
    """`MyFunction.apply(...)`: under autocast its forward computes low from float32, its backward does not."""
    region, cls = op.run.autocast(), op.operand(0)
    if region is None or not region.enabled or region.spot is None or not op.run.grad() or not isinstance(cls, Class):
        return
    forward, backward = (classes.find_method(cls, name) for name in ("forward", "backward"))
    if forward is None or backward is None:
        return
    texts = [found[0].scope.source.code(found[0].node) for found in (forward, backward)]
    wide = any(isinstance(value, Tensor) and value.dtype == frozenset({"float32"}) for value in op.operands)
    careless = wide and all(ELIGIBLE.search(text) and not CARE.search(text) for text in texts)
    recomputes = RUNS_AGAIN.search(texts[1]) and not any(REGION.search(text) for text in texts)
    if careless or recomputes:
        because = ("it is applied under autocast here", op.spot)
        detail = "its backward runs the forward pass again, outside the region" if recomputes else ""
        spot = _place(forward[0])
        op.run.facts.add(Kind.CALL, spot, "", None, because, detail, api="autograd.Function", decorated=False)


def _place(function: Function) -> Spot:
    name = getattr(function.node, "name", function.node)
    return Spot(function.scope.source, name, function.scope.function)
