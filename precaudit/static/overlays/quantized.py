"""Quantised bases under adapters: bitsandbytes' compute dtype, and PEFT's preparation of a k-bit model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import (
    Instance,
    Opaque,
    Ref,
    Value,
    constant,
    unknown,
)
from precaudit.static.overlays.torch import modules, operands

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def config(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`BitsAndBytesConfig(...)`: 4-bit storage computes in float32 unless told otherwise."""
    bits = 4 if constant(kwargs.get("load_in_4bit")) else 8 if constant(kwargs.get("load_in_8bit")) else 0
    if "\0rest" not in kwargs and bits == 4:
        given = kwargs.get("bnb_4bit_compute_dtype")
        wanted = operands.dtype_argument(torch, given)
        dtype = operands.names(wanted) if wanted is not None else frozenset({"float32"})
        if dtype is not None and len(dtype) == 1:
            torch.training.compute_dtypes.append((torch.spot(node), min(dtype)))
    return Instance(Ref("transformers.BitsAndBytesConfig"), {"\0bits": bits})


def is_kbit(kwargs: dict[str, Value]) -> bool:
    """Whether these arguments of from_pretrained load a k-bit model for certain."""
    given = kwargs.get("quantization_config")
    if isinstance(given, Instance) and given.store.get("\0bits"):
        return True
    return constant(kwargs.get("load_in_4bit")) is True or constant(kwargs.get("load_in_8bit")) is True


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
    """Reports what matters only where the file trains."""
    held = torch.training
    if not held.trained:
        return
    for spot, loaded in () if held.trainer_prepares else held.unprepared:
        because = ("its base is loaded in k bits here", loaded)
        torch.facts.add(Kind.CALL, spot, "", None, because, api="prepare_model_for_kbit_training", called=False)
    scaling = _loss_scaling(torch)
    for spot, dtype in held.compute_dtypes:
        if dtype != "float16" or scaling is not None:
            torch.facts.add(
                Kind.DECLARED,
                spot,
                dtype,
                Role.QUANTIZED_STORAGE,
                loss_scaling=scaling if scaling is not None else "scaled",
            )


def _loss_scaling(torch: Torch) -> str | None:
    """Whether the loss is scaled in this file; None where that is decided elsewhere."""
    held = torch.training
    if held.arguments:
        modes = {(constant(a.store.get("fp16", Ref(""))), "fp16" in a.store) for a in held.arguments}
        if len(modes) > 1 or any("\0rest" in a.store for a in held.arguments):
            return None
        value, given = modes.pop()
        return "scaled" if value is True else "none" if value is False or not given else None
    if held.saw_scaler:
        return "scaled"
    return "none" if held.plain_backward is not None and not torch.outside_scaling else None
