"""PA709: flags of torch.backends that change the precision inside matmuls."""

from __future__ import annotations

import re
from functools import partial

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Ref, Spot, truth
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.run import Run
from precaudit.static.reach.words import code_of

FLOAT16 = re.compile(r"\bfloat16\b|\.half\(|\bfp16\s*=\s*True")
"""What the code of a file that computes in float16 says somewhere."""
KEPT = {
    "allow_fp16_reduced_precision_reduction": "float16",
    "allow_fp16_bf16_reduction_math_sdp": "float16",
    "allow_tf32": "legacy",
    "fp32_precision": "new",
}
"""Flag -> what it is about: partial sums in 16 bits; TF32 by the old API; TF32 by the new one."""


def listen(bus: Bus) -> None:
    Flags(bus)


class Flags:
    """Where each was first set; whether float16 trains is known at the end."""

    def __init__(self, bus: Bus) -> None:
        self._set: dict[str, Spot] = {}
        bus.on("torch.backends", self._is_set, low_only=False)
        bus.on_end(self._end)

    def _is_set(self, op: Op) -> None:
        """`torch.backends.<flag> = value`, `torch.backends.<flag>(value)`."""
        flag, value = op.operand(0), op.operand(1)
        about = KEPT.get(flag.name.rpartition(".")[2]) if isinstance(flag, Ref) else None
        if about is not None and not op.run.interpreter.guarded() and (about != "float16" or truth(value) is True):
            self._set.setdefault(about, op.spot)

    def _end(self, run: Run) -> None:
        add, spot = partial(run.facts.add, Kind.CALL), self._set.get("float16")
        if spot is not None and run.training.trained and FLOAT16.search(code_of(spot.source.text)):
            add(spot, "", None, None, "partial sums are float16", api="reduced-precision-flag")
        if "legacy" in self._set and "new" in self._set:
            because = ("the old flag is set here", self._set["legacy"])
            add(
                self._set["new"], "", None, because, "TF32 is set through the old and the new API", api="tf32-set-twice"
            )
