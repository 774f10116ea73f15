"""PEFT: adapters on a base that is frozen, and the preparation of a k-bit base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Opaque, Value, unknown
from precaudit.static.overlays import Call
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def prepare(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`prepare_model_for_kbit_training(model)` gives back the model."""
    model = args[0] if args else kwargs.get("model", unknown())
    if isinstance(model, Opaque):
        torch.interpreter.heap.put(model.store, "\0cared", True)
    return model


def adapters(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`get_peft_model(model, config)`: the base is frozen, the adapters are float32 by default."""
    model = args[0] if args else kwargs.get("model", unknown())
    if isinstance(model, Opaque):
        if model.store.get("\0kbit") and not model.store.get("\0cared"):
            torch.training.unprepared.append((torch.spot(node), model.store.get("\0loaded")))
        return Opaque({"dtype": None})
    modules.escape(torch, model)
    return unknown()


def finish(torch: Torch) -> None:
    """A k-bit base that nothing prepared matters only where the file trains."""
    held = torch.training
    for spot, loaded in held.unprepared if held.trained and not held.trainer_prepares else ():
        because = ("its base is loaded in k bits here", loaded)
        torch.facts.add(Kind.CALL, spot, "", None, because, api="prepare_model_for_kbit_training", called=False)


CALLS: Mapping[str, Call] = {
    "peft.prepare_model_for_kbit_training": prepare,
    "peft.get_peft_model": adapters,
}
