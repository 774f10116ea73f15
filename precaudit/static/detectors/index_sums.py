"""PA405: rows that are summed by index in low precision, where the kernel rounds at each addition."""

from __future__ import annotations

import re

from precaudit.model.vocabulary import Kind, Role
from precaudit.static import nodes as cst
from precaudit.static.language.values import NONE, Tensor, truth
from precaudit.static.overlays.events import Bus, Op

FEW = re.compile(r"permut|expert|moe|rout|top_?[kx]|combine|dispatch|token", re.IGNORECASE)
"""Names in code that gives tokens back from their experts: a row is a sum of few, as an activation may be."""


def listen(bus: Bus) -> None:
    bus.on("index_add_ index_add scatter_add_ scatter_add", _summed)
    bus.on("index_put_", lambda op: _summed(op) if truth(op.argument(3, "accumulate") or NONE) else None)


def _summed(op: Op) -> None:
    """Into zeros that are as old as this turn of the loop; experts that add to one result in turn add few times."""
    into, run = op.operand(0), op.torch.interpreter
    named = [frame.function.name.value for frame in run.frames if isinstance(frame.function, cst.FunctionDef)]
    if FEW.search(" ".join([*named, run.text(op.node)])):
        return
    if isinstance(into, Tensor) and into.low and "created" in into.marks and into.loops == op.torch.loops():
        because = ("it was made low here", into.origin or into.spot)
        op.torch.facts.add(Kind.HOLDS, op.spot, into.dtype, Role.REDUCTION, because, "", pattern="running")
