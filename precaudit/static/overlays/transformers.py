"""Transformers: what from_pretrained loads, TrainingArguments, and what Trainer does with a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language import calls, classes
from precaudit.static.language.heap import Store
from precaudit.static.language.values import (
    Class,
    Const,
    Dict,
    Function,
    Instance,
    Opaque,
    Param,
    Ref,
    Spot,
    Value,
    constant,
    is_low,
    unknown,
)
from precaudit.static.overlays import (
    Call,
    Method,
    bitsandbytes,
    checkpoints,
    command_lines,
    deepspeed,
    launchers,
    others,
)
from precaudit.static.overlays.engines import masters_elsewhere
from precaudit.static.overlays.torch import modules, operands, optimizers

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

WORDS = framework("transformers").words
MODELS = tuple(WORDS["models"])
"""What the names of models end with."""
WIDE_OPTIMIZERS = re.compile(WORDS["wide_optimizers"], re.IGNORECASE)
"""Values of TrainingArguments.optim whose state does not simply have the parameters' dtype."""


def from_pretrained(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A model that a framework loads: its parameters have the dtype asked for, or one that is not known."""
    if name.startswith("transformers."):
        run.met("transformers")
    given = kwargs.get("dtype", kwargs.get("torch_dtype"))
    wanted = operands.dtype_argument(run, given)
    dtype = operands.names(wanted) if wanted is not None else None
    store: dict[Any, Any] = {"dtype": dtype}
    if {"quantization_config", "load_in_8bit", "load_in_4bit", "\0rest"} & set(kwargs):
        store["dtype"] = None
        bitsandbytes.loaded(run, kwargs, store)
        if bitsandbytes.is_kbit(kwargs):
            store.update({"\0kbit": True, "\0loaded": run.spot(node)})
    elif dtype is not None:
        store["spot"] = run.spot(node)
    elif (given is None or constant(given) == "auto") and name.startswith("transformers."):
        path = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        comes = checkpoints.asked_for_none(run, path, run.spot(node))
        if comes is not None:
            store["\0comes"] = (comes, run.spot(node), given is not None)
    return Opaque(store)


def from_config(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`AutoModelForCausalLM.from_config(config, dtype=...)`: a model with random weights."""
    run.met("transformers")
    wanted = operands.dtype_argument(run, kwargs.get("dtype", kwargs.get("torch_dtype")))
    dtype = operands.names(wanted) if wanted is not None else None
    return Opaque({"dtype": dtype, "spot": run.spot(node)}) if dtype is not None else built(run, name, node)


def model_class(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`LlamaForCausalLM(config)`; what else transformers has may do anything."""
    if name.endswith(MODELS):
        return built(run, name, node)
    return others.unfamiliar(run, name, args, kwargs, node)


def built(run: Run, name: str, node: Any) -> Value:
    """A model with random weights, made in the default dtype; of a wide one it is not known what its config says."""
    run.met("transformers")
    default = run.default_dtype()
    store: Store = {"dtype": default if is_low(default) else None}
    made = run.interpreter.world.get("default_spot")
    if default is not None and is_low(default) and made is not None:
        store["spot"] = made
        run.training.built_by_default.append((made, default, run.spot(node), {"weights": Param(store)}))
    return Opaque(store)


def trainer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Trainer(model, args)`."""
    run.met("trainer")
    arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
    model = kwargs.get("model", args[0] if args else None)
    made = kwargs.get("model_init")
    if isinstance(made, Function) and (model is None or constant(model) is None):
        model = calls.call(run.interpreter, made, [], {}, node)
    run.training.trained = True
    if model is not None:
        bitsandbytes.learns(run, model)
    if isinstance(arguments, Instance):
        run.training.arguments.append(arguments)
        if isinstance(constant(model), str) and isinstance(arguments.store.get("model_init_kwargs"), Dict):
            model = _loaded_by_name(run, arguments.store["model_init_kwargs"], arguments)
        adapters = "peft_config" in kwargs and not isinstance(kwargs["peft_config"], Const)
        if model is not None and not adapters:
            _trains(run, model, arguments, "optimizers" in kwargs, node)
    return unknown()


def _loaded_by_name(run: Run, keywords: Dict, arguments: Instance) -> Value:
    """The model that a trainer loads itself, by name, with keywords from its arguments."""
    wanted = operands.dtype_argument(run, keywords.store.get("dtype", keywords.store.get("torch_dtype")))
    spot = keywords.spot or arguments.store.get("\0spot")
    return Opaque({"dtype": operands.names(wanted) if wanted is not None else None, "spot": spot})


def _trains(run: Run, model: Value, arguments: Instance, own_optimizer: bool, node: Any) -> None:
    """A framework's trainer builds its optimizer on the model's parameters as they are."""
    engines = [
        arguments.store.get(key) for key in ("deepspeed", "fsdp", "parallelism_config") if key in arguments.store
    ]
    if any(not (isinstance(e, Const) and not e.value) for e in engines) or masters_elsewhere(run, node):
        return
    fp16 = constant(arguments.store.get("fp16")) is True
    because = ("the trainer is built here", run.spot(node))
    for _, param in modules.parameters(run, model):
        if not optimizers.trainable(param):
            continue
        if param.dtype is None and "\0comes" in param.store:
            as_it_comes(run, param.store, because)
        if not is_low(param.dtype) or not param.dtype:
            continue
        adapters = optimizers.is_adapter(param)
        attrs: dict[str, Any] = {"trainer_fp16": True} if fp16 and param.dtype == frozenset({"float16"}) else {}
        if adapters:
            attrs["allowed_because"] = "adapter-only"
        spot = param.store.get("spot") or run.spot(node)
        detail = "the trainer's optimizer updates them in place"
        run.facts.add(Kind.HOLDS, spot, param.dtype, Role.MASTER_WEIGHT, because, detail, **attrs)
        optim = arguments.store.get("optim", Const("adamw_torch"))
        if isinstance(optim, Const) and not WIDE_OPTIMIZERS.search(str(optim.value)) and not own_optimizer:
            detail = "the trainer's AdamW keeps its state in the parameters' dtype"
            run.facts.add(Kind.HOLDS, spot, param.dtype, Role.OPTIMIZER_STATE, because, detail, chosen="framework")
        return


def as_it_comes(run: Run, store: Store, because: tuple[str, Spot | None]) -> None:
    """A model that from_pretrained was told no dtype of is trained: in the checkpoint's own."""
    comes, spot, auto = store["\0comes"]
    certain = auto or checkpoints.keeps_dtype(run, spot)
    if certain is False:
        return
    detail = "from_pretrained keeps the checkpoint's dtype" + ("" if auto else ", from transformers 5 on")
    chosen = ("framework" if comes.known else "checkpoint") if certain else "default"
    run.facts.add(Kind.HOLDS, spot, comes.dtype, Role.MASTER_WEIGHT, because, detail, chosen=chosen)


def save_pretrained(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A checkpoint is written, perhaps to be loaded again."""
    checkpoints.saves(run, receiver)
    return unknown()


def finish(run: Run) -> None:
    """Optimizers over a model that was loaded in its checkpoint's dtype, and what launcher lines say."""
    launchers.compare(run)
    for made in run.training.optimizers:
        if made.store.get("elsewhere"):
            continue
        for param in made.store["params"]:
            if isinstance(param, Param) and param.dtype is None and "\0comes" in param.store:
                if optimizers.trainable(param):
                    as_it_comes(run, param.store, ("the optimizer is built here", made.store["spot"]))
                break


def training_arguments(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """TrainingArguments and TRL's configs; a DeepSpeed file that they name must ask for the same precision."""
    fp16, bf16 = constant(kwargs.get("fp16")), constant(kwargs.get("bf16"))
    if fp16 is True and bf16 is True:
        run.facts.add(Kind.CONFIG, run.spot(node), "", None, None, "fp16 and bf16 are both on", conflict=True)
    if "\0rest" not in kwargs and name.startswith("transformers."):
        _compare(run, kwargs, node)
    return Instance(Ref("transformers.TrainingArguments"), {**kwargs, "\0spot": run.spot(node)})


def _compare(run: Run, kwargs: dict[str, Value], node: Any) -> None:
    """transformers refuses a DeepSpeed config whose fp16.enabled or bf16.enabled is not what the arguments say."""
    config = deepspeed.read_config(run, kwargs.get("deepspeed"), node)
    if not config:
        return
    run.met("deepspeed")
    spot = run.argument_spot(node, "deepspeed")
    asked = {key: constant(kwargs[key]) for key in launchers.MODES if key in kwargs}
    for mode, wanted in launchers.enabled(config).items():
        given = [asked[key] for key in (mode, f"{mode}_full_eval") if key in asked]
        if all(isinstance(value, bool) for value in given) and wanted != any(given):
            told = f"the DeepSpeed config says {mode}.enabled: {str(wanted).lower()}, the arguments {mode}={not wanted}"
            run.facts.add(Kind.CONFIG, spot, "", None, None, told, mismatch=True, key=mode)
            return
    for remark in launchers.left_to_the_script(config, kwargs):
        run.facts.add(remark.kind, spot, remark.dtype, remark.role, None, remark.detail, **remark.attrs)


def parser(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`HfArgumentParser((..., TrainingArguments))`: the arguments come from the command line."""
    run.training.from_command_line.append(run.spot(node))
    return command_lines.dataclass_parser(run, name, args, kwargs, node)


def hook_arguments(cls: Class, name: str) -> dict[str, Value]:
    """The model that Trainer hands to `compute_loss` is trained by what that returns."""
    if name == "compute_loss" and any(base.endswith("Trainer") for base in classes.library_bases(cls)):
        return {"model": unknown("differentiable")}
    return {}


CALLS: Mapping[str, Call] = {
    "*.from_pretrained": from_pretrained,
    "transformers.*.from_config": from_config,
    "transformers.*": model_class,
    "transformers.HfArgumentParser": parser,
    "trl.TrlParser": parser,
    **{f"transformers.{inner}{name}": trainer for name in WORDS["trainers"] for inner in ("", "*.")},
    **{f"transformers.{inner}{name}": training_arguments for name in WORDS["arguments"] for inner in ("", "*.")},
}
BASES: Mapping[str, Call] = {f"transformers.{name}": trainer for name in WORDS["trainers"]}
ON_UNKNOWN: Mapping[str, Method] = {"save_pretrained": save_pretrained}
