"""What calls into DeepSpeed, Lightning and transformers say about precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static import configs
from precaudit.static.language.values import (
    Const,
    Dict,
    Instance,
    Opaque,
    Ref,
    Value,
    constant,
    is_low,
    seq,
    unknown,
)
from precaudit.static.library import (
    modules,
    operands,
    optimizers,
)

if TYPE_CHECKING:
    from precaudit.static.library.torch_model import Torch


def plain(value: Value) -> Any:
    """The Python object behind nested constants; None stands for what is not known."""
    if isinstance(value, Dict):
        return {key: plain(item) for key, item in value.store.items() if isinstance(key, str)}
    return constant(value)


def deepspeed(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    config = kwargs.get("config", kwargs.get("config_params"))
    if isinstance(config, Dict):
        for remark in configs.deepspeed(plain(config)):
            torch.facts.add(
                remark.kind, torch.spot(node), remark.dtype, remark.role, None, remark.detail, **remark.attrs
            )
    torch.outside_scaling = True
    model = kwargs.get("model", args[0] if args else unknown())
    return seq([Opaque(), Opaque(), Opaque(), Opaque()] if not isinstance(model, Const) else [Opaque()] * 4, "tuple")


def trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """Lightning's Trainer(precision=...) and transformers' Trainer(model, args)."""
    precision = constant(kwargs.get("precision"))
    if precision in configs.TRAINER_PRECISIONS:
        torch.facts.add(Kind.CONFIG, torch.spot(node), precision=precision, key="precision")
    arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
    model = kwargs.get("model", args[0] if args else None)
    if isinstance(arguments, Instance) and model is not None and "peft_config" not in kwargs:
        trainer_model(torch, model, arguments, node)
    return unknown()


def training_arguments(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if constant(kwargs.get("fp16")) is True and constant(kwargs.get("bf16")) is True:
        torch.facts.add(Kind.CONFIG, torch.spot(node), "", None, None, "fp16 and bf16 are both on", conflict=True)
    return Instance(Ref("transformers.TrainingArguments"), {k: v for k, v in kwargs.items() if not k.startswith("\0")})


def from_pretrained(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A model that a framework loads: its parameters have the dtype asked for, or one that is not known."""
    wanted = operands.dtype_argument(torch, kwargs.get("dtype", kwargs.get("torch_dtype")))
    dtype = operands.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {"dtype": dtype}
    if {"quantization_config", "load_in_8bit", "load_in_4bit", "\0rest"} & set(kwargs):
        store["dtype"] = None
    elif dtype is not None:
        store["spot"] = torch.spot(node)
    return Opaque(store)


def trainer_model(torch: Torch, model: Value, arguments: Instance, node: Any) -> None:
    """A framework's trainer builds its optimizer on the model's parameters as they are."""
    fp16 = constant(arguments.store.get("fp16")) is True
    for _, param in modules.parameters(torch, model):
        if not is_low(param.dtype) or not optimizers.trainable(param) or not param.dtype:
            continue
        attrs: dict[str, Any] = {"trainer_fp16": True} if fp16 and param.dtype == frozenset({"float16"}) else {}
        spot = param.store.get("spot") or torch.spot(node)
        torch.facts.add(
            Kind.HOLDS,
            spot,
            param.dtype,
            Role.MASTER_WEIGHT,
            ("the trainer is built here", torch.spot(node)),
            "the trainer's optimizer updates them in place",
            **attrs,
        )
        return
