"""Transformers: what from_pretrained loads, TrainingArguments, and what Trainer does with a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language import classes
from precaudit.static.language.values import Class, Const, Instance, Opaque, Ref, Value, constant, is_low, unknown
from precaudit.static.overlays import Call, bitsandbytes, deepspeed
from precaudit.static.overlays.engines import masters_elsewhere
from precaudit.static.overlays.torch import modules, operands, optimizers

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

WIDE_OPTIMIZERS = re.compile(r"8bit|4bit|adafactor|galore|apollo|paged|stable|lomo|schedule_free", re.IGNORECASE)
"""Values of TrainingArguments.optim whose state does not simply have the parameters' dtype."""


def from_pretrained(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A model that a framework loads: its parameters have the dtype asked for, or one that is not known."""
    wanted = operands.dtype_argument(torch, kwargs.get("dtype", kwargs.get("torch_dtype")))
    dtype = operands.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {"dtype": dtype}
    if {"quantization_config", "load_in_8bit", "load_in_4bit", "\0rest"} & set(kwargs):
        store["dtype"] = None
        if bitsandbytes.is_kbit(kwargs):
            store.update({"\0kbit": True, "\0loaded": torch.spot(node)})
    elif dtype is not None:
        store["spot"] = torch.spot(node)
    return Opaque(store)


def trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Trainer(model, args)`."""
    arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
    model = kwargs.get("model", args[0] if args else None)
    torch.training.trained = True
    torch.training.mixed |= "\0rest" in kwargs or not isinstance(arguments, Instance)
    if isinstance(arguments, Instance):
        torch.training.arguments.append(arguments)
        if model is not None and "peft_config" not in kwargs:
            _trains(torch, model, arguments, node)
    return unknown()


def _trains(torch: Torch, model: Value, arguments: Instance, node: Any) -> None:
    """A framework's trainer builds its optimizer on the model's parameters as they are."""
    engines = [
        arguments.store.get(key) for key in ("deepspeed", "fsdp", "parallelism_config") if key in arguments.store
    ]
    if any(not (isinstance(e, Const) and not e.value) for e in engines) or masters_elsewhere(torch, node):
        return
    fp16 = constant(arguments.store.get("fp16")) is True
    for _, param in modules.parameters(torch, model):
        if not is_low(param.dtype) or not optimizers.trainable(param) or not param.dtype:
            continue
        attrs: dict[str, Any] = {"trainer_fp16": True} if fp16 and param.dtype == frozenset({"float16"}) else {}
        spot = param.store.get("spot") or torch.spot(node)
        because = ("the trainer is built here", torch.spot(node))
        detail = "the trainer's optimizer updates them in place"
        torch.facts.add(Kind.HOLDS, spot, param.dtype, Role.MASTER_WEIGHT, because, detail, **attrs)
        optim = arguments.store.get("optim", Const("adamw_torch"))
        if isinstance(optim, Const) and not WIDE_OPTIMIZERS.search(str(optim.value)):
            detail = "the trainer's AdamW keeps its state in the parameters' dtype"
            torch.facts.add(Kind.HOLDS, spot, param.dtype, Role.OPTIMIZER_STATE, because, detail, chosen="framework")
        return


def training_arguments(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """TrainingArguments and TRL's configs; a DeepSpeed file that they name must ask for the same precision."""
    fp16, bf16 = constant(kwargs.get("fp16")), constant(kwargs.get("bf16"))
    if fp16 is True and bf16 is True:
        torch.facts.add(Kind.CONFIG, torch.spot(node), "", None, None, "fp16 and bf16 are both on", conflict=True)
    if "\0rest" not in kwargs and name.startswith("transformers."):
        _compare(torch, kwargs, node)
    return Instance(Ref("transformers.TrainingArguments"), dict(kwargs))


def _compare(torch: Torch, kwargs: dict[str, Value], node: Any) -> None:
    """transformers refuses a DeepSpeed config whose fp16.enabled or bf16.enabled is not what the arguments say."""
    config = deepspeed.read_config(torch, kwargs.get("deepspeed"), node)
    for mode in ("fp16", "bf16"):
        section = config.get(mode)
        wanted = section.get("enabled") if isinstance(section, dict) else None
        given = [kwargs.get(key) for key in (mode, f"{mode}_full_eval") if key in kwargs]
        if not isinstance(wanted, bool) or any(not isinstance(constant(value), bool) for value in given):
            continue
        if wanted != any(constant(value) for value in given):
            detail = (
                f"the DeepSpeed config says {mode}.enabled: {str(wanted).lower()}, the arguments {mode}={not wanted}"
            )
            torch.facts.add(Kind.CONFIG, torch.spot(node), "", None, None, detail, mismatch=True, key=mode)
            return


def hook_arguments(cls: Class, name: str) -> dict[str, Value]:
    """The model that Trainer hands to `compute_loss` is trained by what that returns."""
    if name == "compute_loss" and any(base.endswith("Trainer") for base in classes.library_bases(cls)):
        return {"model": unknown("differentiable")}
    return {}


CALLS: Mapping[str, Call] = {
    "*.from_pretrained": from_pretrained,
    "transformers.Trainer": trainer,
    "transformers.Seq2SeqTrainer": trainer,
    "transformers.TrainingArguments": training_arguments,
    "transformers.Seq2SeqTrainingArguments": training_arguments,
}
