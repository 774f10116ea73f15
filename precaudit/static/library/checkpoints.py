"""What is written into a checkpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import (
    ANY,
    Dict,
    Opaque,
    StateDict,
    Tensor,
    Value,
    is_low,
)

if TYPE_CHECKING:
    from precaudit.static.library.torch_model import Torch


def save(torch: Torch, value: Value, node: Any) -> None:
    """`torch.save(value, path)`."""
    if isinstance(value, Dict) and value.kind == "dict":
        if any(isinstance(v, Opaque) and _may_hold_scaler(k) for k, v in value.store.items()):
            torch.training.scaler_saved = True
        if any(_is_optimizer_state(v) for v in value.store.values()):
            torch.training.saves.append((torch.spot(node), True))
            for held in value.store.values():
                _low_weights_saved(torch, held, node)


def _low_weights_saved(torch: Torch, value: Value, node: Any) -> None:
    """Weights that were cast low are written beside the optimizer that goes on training them."""
    if isinstance(value, Dict) and value.kind == "state_dict":
        tensor = value.store.get(ANY)
        if isinstance(tensor, Tensor) and tensor.low and torch.training.optimizers:
            held = [p for o in torch.training.optimizers for p in o.store["params"]]
            if held and all(p.dtype is not None and not is_low(p.dtype) for p in held):
                return
            torch.facts.add(
                Kind.CHECKPOINT,
                torch.spot(node),
                tensor.dtype,
                Role.MASTER_WEIGHT,
                ("the weights were cast here", tensor.spot),
                low=True,
            )


def _is_optimizer_state(value: Value) -> bool:
    return isinstance(value, StateDict) and value.of == "optimizer"


def _may_hold_scaler(key: Any) -> bool:
    return not isinstance(key, str) or bool(re.search(r"scal|amp|extra|state|other|misc", key)) or key == ANY
