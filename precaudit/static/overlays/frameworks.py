"""What calls into DeepSpeed, Lightning, transformers, TRL and Accelerate say about precision."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static import configs
from precaudit.static.language import calls, classes
from precaudit.static.language.values import (
    Autocast,
    Class,
    Const,
    Context,
    Device,
    Dict,
    Instance,
    Opaque,
    Optimizer,
    Ref,
    Spot,
    Value,
    constant,
    is_low,
    seq,
    unknown,
)
from precaudit.static.nodes import cst
from precaudit.static.overlays import quantized
from precaudit.static.overlays.torch import modules, operands, optimizers, scaling
from precaudit.static.prefilter import code_of

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

TRL = ("SFT", "DPO", "KTO", "ORPO", "CPO", "GRPO", "RLOO", "Reward", "PRM")
"""TRL's trainers: `<name>Trainer` takes a `<name>Config`."""
RUNNERS = frozenset(
    {"accelerate.Accelerator", "lightning.Fabric", "lightning.fabric.Fabric", "lightning_fabric.Fabric"}
)
"""Objects that a hand-written loop hands its model, optimizer and backward to."""
ENGINES = re.compile(r"deepspeed|fsdp|fully_?shard|megatron", re.IGNORECASE)
"""Engines that keep float32 masters themselves; which one runs is decided outside the file that mentions it."""
WIDE_OPTIMIZERS = re.compile(r"8bit|4bit|adafactor|galore|apollo|paged|stable|lomo|schedule_free", re.IGNORECASE)
"""Values of TrainingArguments.optim whose state does not simply have the parameters' dtype."""

WITHOUT_GRAD = frozenset({"validation_step", "test_step", "predict_step", "on_validation_epoch_end"})
"""Methods that Lightning calls under no_grad."""


def is_lightning(cls: Class) -> bool:
    return any(base.endswith("LightningModule") for base in classes.library_bases(cls))


def plain(value: Value) -> Any:
    """The Python object behind nested constants; None stands for what is not known."""
    if isinstance(value, Dict):
        return {key: plain(item) for key, item in value.store.items() if isinstance(key, str)}
    return constant(value)


def masters_elsewhere(torch: Torch, node: Any) -> bool:
    """Whether an engine that keeps float32 masters may train what stands in this file."""
    return bool(ENGINES.search(code_of(torch.spot(node).source.text)))


def deepspeed(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`deepspeed.initialize(...)`, with its config as a dict of this file."""
    config = kwargs.get("config", kwargs.get("config_params"))
    if isinstance(config, Dict):
        perhaps = {key for key in config.store if torch.interpreter.heap.perhaps(config.store, key)}
        for remark in configs.deepspeed(plain(config), perhaps):
            spot, because = _written(config, remark.keys) or torch.spot(node), ("it is used here", torch.spot(node))
            torch.facts.add(remark.kind, spot, remark.dtype, remark.role, because, remark.detail, **remark.attrs)
    torch.outside_scaling = True
    for value in (*args, *kwargs.values()):
        if isinstance(value, Optimizer):
            value.store["elsewhere"] = True
        modules.escape(torch, value)
    return seq([Opaque(), Opaque(), Opaque(), Opaque()], "tuple")


def _written(config: Value, keys: tuple[str, ...]) -> Spot | None:
    """The place of an item in nested literals, as near as they can be followed."""
    spot = None
    for key in keys:
        if not isinstance(config, Dict) or config.spot is None:
            break
        mine = [at for name, at in _keys(config.spot.node) if name == key]
        if not mine or key not in config.store:
            break
        spot, config = replace(config.spot, node=mine[-1]), config.store[key]
    return spot


def _keys(node: Any) -> Iterator[tuple[Any, Any]]:
    """(key, its place) in `{"key": ...}` or `dict(key=...)`."""
    for part in node.args if isinstance(node, cst.Call) else node.elements:
        if isinstance(part, cst.Arg) and part.keyword is not None:
            yield part.keyword.value, part.keyword
        elif isinstance(part, cst.DictElement) and isinstance(part.key, cst.SimpleString):
            yield part.key.evaluated_value, part.key


def trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """Lightning's Trainer(precision=...) and transformers' Trainer(model, args)."""
    precision = constant(kwargs.get("precision"))
    if precision in configs.TRAINER_PRECISIONS:
        torch.facts.add(Kind.CONFIG, torch.spot(node), precision=precision, key="precision")
    torch.training.mixed |= "\0rest" in kwargs or not _unmixed(kwargs.get("precision"))
    arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
    model = kwargs.get("model", args[0] if args else None)
    torch.training.trained = True
    if isinstance(arguments, Instance):
        torch.training.arguments.append(arguments)
        if model is not None and "peft_config" not in kwargs:
            _trains(torch, model, arguments, node)
    return unknown()


def _unmixed(precision: Value | None) -> bool:
    """Whether Lightning runs the training step without autocast."""
    return precision is None or str(constant(precision)) in (
        "32",
        "64",
        "32-true",
        "64-true",
        *configs.TRAINER_PRECISIONS,
    )


def trl_trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """TRL's trainers prepare a k-bit model themselves."""
    torch.training.trainer_prepares = True
    return trainer(torch, name, args, kwargs, node)


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
    config = _deepspeed_config(torch, kwargs.get("deepspeed"), node)
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


def _deepspeed_config(torch: Torch, given: Value | None, node: Any) -> dict[str, Any]:
    """A DeepSpeed config given as a dict or as the name of a JSON file near the script; empty where it is not known."""
    if isinstance(given, Dict):
        found = plain(given)
        return found if isinstance(found, dict) else {}
    name = constant(given)
    if not isinstance(name, str) or not name.endswith(".json"):
        return {}
    try:
        raw = torch.read_beside(torch.spot(node).source, name)
        found = json.loads(raw) if raw is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def from_pretrained(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A model that a framework loads: its parameters have the dtype asked for, or one that is not known."""
    wanted = operands.dtype_argument(torch, kwargs.get("dtype", kwargs.get("torch_dtype")))
    dtype = operands.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {"dtype": dtype}
    if {"quantization_config", "load_in_8bit", "load_in_4bit", "\0rest"} & set(kwargs):
        store["dtype"] = None
        if quantized.is_kbit(kwargs):
            store.update({"\0kbit": True, "\0loaded": torch.spot(node)})
    elif dtype is not None:
        store["spot"] = torch.spot(node)
    return Opaque(store)


# ---- Accelerate and Fabric: a loop of the user's own, with backward and the optimizer in the framework's hands


def loop_runner(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Accelerator(...)` and `Fabric(...)`: the loss is scaled by them where that is needed."""
    torch.outside_scaling = True
    store: dict[Any, Any] = {"\0plugins": [key for key in kwargs if "plugin" in key or key in ("strategy", "\0rest")]}
    precision = constant(kwargs.get("precision"))
    if precision in configs.TRAINER_PRECISIONS:
        torch.training.true_half.append((torch.spot(node), precision, store))
    mode = kwargs.get("mixed_precision", kwargs.get("precision"))
    if isinstance(mode, Const) and isinstance(mode.value, str):
        store["mixed_precision"] = mode
    return Instance(Ref(name), store)


def runner_method(
    torch: Torch, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A method of an Accelerator or a Fabric."""
    if name in ("prepare", "prepare_model", "prepare_optimizer", "prepare_data_loader", "setup", "setup_module"):
        prepared = [_prepared(torch, receiver, value, node) for value in args]
        return prepared[0] if len(prepared) == 1 else seq(prepared, "tuple")
    if name in ("setup_optimizers", "setup_dataloaders", "prepare_scheduler"):
        return args[0] if len(args) == 1 else seq(args, "tuple")
    if name == "launch" and args:
        return calls.call(torch.interpreter, args[0], [receiver, *args[1:]], kwargs, node)
    if name == "backward":
        torch.training.trained = True
        receiver.store["\0trains"] = True
        if constant(receiver.store.get("mixed_precision")) in ("fp16", "16-mixed"):
            scaling.runner_backward(torch, node)
        return unknown()
    if name in ("clip_grad_norm_", "clip_grad_value_", "clip_gradients", "unscale_gradients"):
        scaling.runner_unscaled(torch)
        return unknown()
    if name == "autocast":
        low = {"bf16": "bfloat16", "fp16": "float16", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
        dtype = low.get(str(constant(receiver.store.get("mixed_precision"))))
        if dtype is None:
            return unknown("context")
        return Autocast(frozenset({"cuda"}), frozenset({dtype}), True, torch.spot(node))
    if name in ("accumulate", "no_sync", "no_backward_sync", "main_process_first", "local_main_process_first"):
        return Context("null")
    if name == "device":
        return Device(frozenset({"?"}))
    return unknown()


def _prepared(torch: Torch, receiver: Instance, value: Value, node: Any) -> Value:
    """What `prepare` gives back: the same optimizer; a model whose outputs are float32 again, so one not known."""
    if isinstance(value, Optimizer):
        elsewhere = bool(receiver.store["\0plugins"]) or masters_elsewhere(torch, node)
        value.store["elsewhere" if elsewhere else "framework"] = True
        if not elsewhere and constant(receiver.store.get("mixed_precision")) in ("fp16", "16-mixed"):
            scaling.float16_gradients(torch, value, node)
        return value
    if modules.is_module(torch, value) or isinstance(value, Opaque):
        return unknown()
    return value
