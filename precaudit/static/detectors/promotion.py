"""PA410: a number was made a float32 tensor to widen what it meets, which a tensor without dimensions does not."""

from __future__ import annotations

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Tensor
from precaudit.static.overlays.bus import Bus
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch.opnames import POINTWISE


def listen(bus: Bus) -> None:
    bus.on(POINTWISE, _combined)


def _combined(op: Op) -> None:
    wide = next((t for t in op.tensors if t.zero_dim and "asked_float32" in t.marks), None)
    if wide is not None and isinstance(op.result, Tensor) and not op.result.zero_dim:
        because = ("it was made float32 here", wide.spot)
        op.run.facts.add(Kind.OP, op.spot, op.result.dtype, None, because, op="no-promotion")
