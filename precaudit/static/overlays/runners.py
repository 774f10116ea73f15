"""What runs a loop of the user's own: Accelerate and Fabric, with backward and the optimizer in their hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language import calls
from precaudit.static.language.values import (
    Autocast,
    Const,
    Context,
    Device,
    Instance,
    Opaque,
    Optimizer,
    Ref,
    Seq,
    Value,
    constant,
    seq,
    unknown,
)
from precaudit.static.overlays.engines import masters_elsewhere
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

CAST = {**framework("accelerate").dtypes("autocast"), **framework("lightning").dtypes("autocast")}
"""Their words for autocast -> its dtype."""
FLOAT16 = frozenset(word for word, dtype in CAST.items() if dtype == "float16")
"""Those with which they scale the loss."""
PLAIN_STRATEGIES = framework("lightning").named("plain_strategies")
TRUE_HALF = ("16-true", "bf16-true")


def loop_runner(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Accelerator(...)` and `Fabric(...)`: the loss is scaled by them where that is needed."""
    run.training.outside_scaling = True
    store: dict[Any, Any] = {
        "device": Device(frozenset({"?"})),
        "\0plugins": [key for key, value in kwargs.items() if _may_keep_masters(key, value)],
    }
    run.met(name.rpartition(".")[2].lower().replace("accelerator", "accelerate"))
    asked = precision_of(kwargs)
    precision = constant(asked)
    if precision in TRUE_HALF:
        run.training.true_half.append((run.argument_spot(node, "precision", "plugins"), precision, store))
    mode = kwargs.get("mixed_precision", asked)
    if isinstance(mode, Const) and isinstance(mode.value, str):
        store["mixed_precision"] = mode
        if name.endswith("Accelerator"):
            run.training.accelerators.append((run.spot(node), mode.value))
    return Instance(Ref(name), store)


def _may_keep_masters(key: str, value: Value) -> bool:
    """Whether an argument chooses an engine that may keep float32 masters itself."""
    plain = key == "strategy" and constant(value) in PLAIN_STRATEGIES
    return "plugin" in key or (key in ("strategy", "\0rest") and not plain)


def precision_of(kwargs: dict[str, Value]) -> Value | None:
    """What a trainer or a Fabric is asked for: by `precision`, or by a plugin that carries one."""
    given = kwargs.get("plugins")
    for plugin in given.items if isinstance(given, Seq) else [given]:
        if isinstance(plugin, Instance) and "\0precision" in plugin.store:
            found: Value = plugin.store["\0precision"]
            return found
    return kwargs.get("precision")


def precision_plugin(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`HalfPrecision("bf16-true")`, `MixedPrecision("16-mixed", "cuda")`: a precision as an object."""
    default = Const("16-true" if name.endswith("HalfPrecision") else None)
    return Instance(Ref(name), {"\0precision": args[0] if args else kwargs.get("precision", default)})


def method(run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A method of an Accelerator or a Fabric."""
    if name in ("prepare", "prepare_model", "prepare_optimizer", "prepare_data_loader", "setup", "setup_module"):
        prepared = [_prepared(run, receiver, value, node) for value in args]
        return prepared[0] if len(prepared) == 1 else seq(prepared, "tuple")
    if name in ("setup_optimizers", "setup_dataloaders", "prepare_scheduler"):
        return args[0] if len(args) == 1 else seq(args, "tuple")
    if name == "launch" and args:
        return calls.call(run.interpreter, args[0], [receiver, *args[1:]], kwargs, node)
    if name == "backward":
        run.training.trained = True
        receiver.store["\0trains"] = True
        if constant(receiver.store.get("mixed_precision")) in FLOAT16:
            tell(run, "runner.backward", [], node)
        return unknown()
    if name in ("clip_grad_norm_", "clip_grad_value_", "clip_gradients", "unscale_gradients"):
        tell(run, "runner.unscale", [], node)
        return unknown()
    if name == "autocast":
        dtype = CAST.get(str(constant(receiver.store.get("mixed_precision"))))
        if dtype is None:
            return unknown("context")
        return Autocast(frozenset({"cuda"}), frozenset({dtype}), True, run.spot(node))
    if name in ("accumulate", "no_sync", "no_backward_sync", "main_process_first", "local_main_process_first"):
        return Context("null")
    return unknown()


def _prepared(run: Run, receiver: Instance, value: Value, node: Any) -> Value:
    """What `prepare` gives back: the same optimizer; a model whose outputs are float32 again, so one not known."""
    if isinstance(value, Optimizer):
        elsewhere = bool(receiver.store["\0plugins"]) or masters_elsewhere(run, node)
        value.store["elsewhere" if elsewhere else "framework"] = True
        if not elsewhere and constant(receiver.store.get("mixed_precision")) in FLOAT16:
            tell(run, "runner.prepare", [value], node)
        return value
    if modules.is_module(run, value) or isinstance(value, Opaque):
        return unknown()
    return value
