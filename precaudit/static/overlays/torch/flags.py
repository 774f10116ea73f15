"""Flags of torch.backends that change the precision inside matmuls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import NONE, Value, truth
from precaudit.static.reach.words import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

FLOAT16 = re.compile(r"\bfloat16\b|\.half\(|\bfp16\s*=\s*True")
"""What the code of a file that computes in float16 says somewhere."""


def flag_set(run: Run, name: str, value: Value, node: Any) -> None:
    """`torch.backends.<name> = value`."""
    last = name.rpartition(".")[2]
    if run.interpreter.guarded():
        return
    if last == "allow_fp16_reduced_precision_reduction" and truth(value) is True:
        run.training.flags.setdefault("float16", run.spot(node))
    elif last == "allow_tf32":
        run.training.flags.setdefault("legacy", run.spot(node))
    elif last == "fp32_precision":
        run.training.flags.setdefault("new", run.spot(node))


def reduce_in_float16(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)`: attention's math path sums in 16 bits."""
    if args and truth(args[0]) is True and not run.interpreter.guarded():
        run.training.flags.setdefault("float16", run.spot(node))
    return NONE


def finish(run: Run) -> None:
    """Partial sums in float16 where a float16 model trains; TF32 set through the old and the new API."""
    flags = run.training.flags
    spot = flags.get("float16")
    if spot is not None and run.training.trained and FLOAT16.search(code_of(spot.source.text)):
        run.facts.add(Kind.CALL, spot, "", None, None, "partial sums are float16", api="reduced-precision-flag")
    if "legacy" in flags and "new" in flags:
        because = ("the old flag is set here", flags["legacy"])
        detail = "TF32 is set through the old and the new API"
        run.facts.add(Kind.CALL, flags["new"], "", None, because, detail, api="tf32-set-twice")
