"""What is written into a checkpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import LOW, Kind, Role
from precaudit.static.language.values import (
    ANY,
    Dict,
    Instance,
    Opaque,
    Seq,
    Tensor,
    Value,
)
from precaudit.static.overlays import records
from precaudit.static.overlays.torch import modules, operands

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def save(torch: Torch, value: Value, node: Any) -> None:
    """`torch.save(value, path)`."""
    value = _by_name(torch, value)
    if isinstance(value, Dict) and value.kind == "dict":
        if any(isinstance(v, Opaque) and _may_hold_scaler(k) for k, v in value.store.items()):
            torch.training.scaler_saved = True
        states = [t for v in value.store.values() for t in _optimizer_state(v)]
        if states:
            torch.training.saves.append((torch.spot(node), True))
            _low_weights_saved(torch, list(value.store.values()), node)
            _low_state_saved(torch, states, node)


def _by_name(torch: Torch, value: Value) -> Value:
    """A tuple or an object that is no module as the dict of what it holds."""
    if isinstance(value, Seq) and not value.open:
        return Dict({f"[{place}]": item for place, item in enumerate(value.items)})
    if isinstance(value, Instance) and not modules.is_module(torch, value):
        return records.as_dict(value)
    return value


def _low_weights_saved(torch: Torch, entries: list[Value], node: Any) -> None:
    """Weights are written low beside the optimizer's state, and nowhere in float32: a resumed run begins from them."""
    weights = [w for entry in entries for w in _weights(torch, entry)]
    low = [w for w in weights if w.low]
    if not low or len(low) < len(weights):
        return
    torch.facts.add(
        Kind.CHECKPOINT,
        torch.spot(node),
        low[0].dtype,
        Role.MASTER_WEIGHT,
        ("the weights were cast here", low[0].spot),
        low=True,
    )


def _low_state_saved(torch: Torch, states: list[Tensor], node: Any) -> None:
    """Slots that were float32 in the optimizer were cast low for the file; a step counter among them may not be."""
    low = [t for t in states if t.dtype is not None and t.dtype & LOW]
    if low and low[0].dtype is not None:
        because = ("the optimizer's state was cast here", low[0].spot)
        dtype = low[0].dtype & LOW
        torch.facts.add(Kind.CHECKPOINT, torch.spot(node), dtype, Role.OPTIMIZER_STATE, because, low=True)


def _weights(torch: Torch, entry: Value) -> list[Tensor]:
    """The tensors of a state dict, of a dict made from one, or of a module that is saved whole."""
    held = list(entry.store.values()) if isinstance(entry, Dict) else []
    if modules.is_module(torch, entry):
        held = [operands.as_tensor(torch, param) for _, param in modules.parameters(torch, entry)]
    return [v for v in held if isinstance(v, Tensor) and "weights" in v.marks]


def _optimizer_state(value: Value, depth: int = 0) -> list[Tensor]:
    """The slots in what `optimizer.state_dict()` gave, or in a dict made from it."""
    if isinstance(value, Tensor):
        return [value] if "optimizer_state" in value.marks else []
    if not isinstance(value, Dict) or depth > 3:
        return []
    return [t for v in value.store.values() for t in _optimizer_state(v, depth + 1)]


def _may_hold_scaler(key: Any) -> bool:
    return not isinstance(key, str) or bool(re.search(r"scal|amp|extra|state|other|misc", key)) or key == ANY
