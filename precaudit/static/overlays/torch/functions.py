"""Hand-written autograd functions under autocast."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind
from precaudit.static.language import classes
from precaudit.static.language.values import (
    Class,
    Function,
    Spot,
    Tensor,
    Value,
    unknown,
)
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

ELIGIBLE = re.compile(r"[\w)\]]\s*@\s*[\w(]|\.(?:mm|bmm|matmul|addmm|baddbmm|mv)\(|\b(?:linear|conv[123]d|einsum)\(")
"""Operations that autocast casts."""
CARE = re.compile(
    r"custom_fwd|custom_bwd|autocast|\.to\((?![^()]*device[^(),]*\))|\.float\(|\.type_as\(|\.type\(|\.half\(|\.bfloat16\("
)
"""Signs that the dtypes are looked after by hand."""

RUNS_AGAIN = re.compile(r"\benable_grad\(\)")
"""How a backward says that it computes the forward pass a second time."""
REGION = re.compile(r"autocast|custom_bwd")


def applied(run: Run, cls: Class, args: list[Value], node: Any) -> Value:
    """`MyFunction.apply(...)`: under autocast its forward computes low from float32, its backward does not."""
    operands_read = [operands.as_tensor(run, value) for value in args]
    region = run.autocast()
    wide = any(isinstance(value, Tensor) and value.dtype == frozenset({"float32"}) for value in operands_read)
    if region is not None and region.enabled and region.spot is not None and run.grad():
        forward, backward = (classes.find_method(cls, name) for name in ("forward", "backward"))
        if forward is not None and backward is not None:
            texts = [found[0].scope.source.code(found[0].node) for found in (forward, backward)]
            careless = wide and all(ELIGIBLE.search(text) and not CARE.search(text) for text in texts)
            recomputes = RUNS_AGAIN.search(texts[1]) and not any(REGION.search(text) for text in texts)
            if careless or recomputes:
                because = ("it is applied under autocast here", run.spot(node))
                detail = "its backward runs the forward pass again, outside the region" if recomputes else ""
                spot = _place(forward[0])
                run.facts.add(Kind.CALL, spot, "", None, because, detail, api="autograd.Function", decorated=False)
    return unknown(*(operands.marks_of(operands_read) & operands.KEPT))


def _place(function: Function) -> Spot:
    name = getattr(function.node, "name", function.node)
    return Spot(function.scope.source, name, function.scope.function)
