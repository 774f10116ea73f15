"""Lightning and Fabric: the precision of their trainers, and what Lightning calls of a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language import calls, classes
from precaudit.static.language.values import (
    NONE,
    Class,
    Context,
    Dict,
    Function,
    Instance,
    Ref,
    Value,
    constant,
    unknown,
)
from precaudit.static.overlays import Call, Method, runners
from precaudit.static.overlays.torch import operands, scaling

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

LIGHTNING = framework("lightning")
PLUGINS = [f"{package}.plugins{inner}" for package in LIGHTNING.named("packages") for inner in ("", ".precision")]
TRUE_HALF = ("16-true", "bf16-true")
"""Precisions in which parameters and optimizer state are 16 bits wide."""


def is_lightning(cls: Class) -> bool:
    return any(base.endswith("LightningModule") for base in classes.library_bases(cls))


def trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Trainer(precision=...)`."""
    torch.met("lightning")
    given = runners.precision_of(kwargs)
    torch.training.mixed |= "\0rest" in kwargs or not _unmixed(given)
    torch.training.precisions.append(given or NONE)
    made = Instance(Ref(name), {"\0trainer": True})
    if constant(given) in TRUE_HALF:
        torch.training.true_half.append((torch.spot(node), constant(given), made.store))
    return made


def method(
    torch: Torch, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A method of a Trainer: only `fit` trains."""
    if name == "fit":
        torch.training.trained = True
        torch.interpreter.heap.put(receiver.store, "\0trains", True)
        _fit(torch, args[0] if args else kwargs.get("model", unknown()), node)
    elif name in ("predict", "test", "validate"):
        torch.interpreter.heap.put(receiver.store, "\0predicts", True)
    return unknown()


def _unmixed(precision: Value | None) -> bool:
    """Whether the training step certainly runs without autocast."""
    return precision is None or str(constant(precision)) in LIGHTNING.dtypes("parameters")


def context(cls: Class, function: Function) -> Any:
    """Some methods of a LightningModule are called under no_grad."""
    if function.node.name.value in LIGHTNING.named("without_grad") and is_lightning(cls):
        return Context("no_grad")
    return None


def returned(torch: Torch, cls: Class, name: str, value: Value, node: Any) -> None:
    """The loss that Lightning gets from `training_step`."""
    if name == "training_step" and is_lightning(cls):
        torch.met("lightning")
        loss = value.store.get("loss") if isinstance(value, Dict) else value
        if isinstance(loss, Value):
            torch.training.returned.append((operands.as_tensor(torch, loss), torch.spot(node)))


def _fit(torch: Torch, module: Value, node: Any) -> None:
    """Runs what Lightning calls of a module that optimizes by itself, in the order in which it does."""
    if not isinstance(module, Instance) or constant(module.store.get("automatic_optimization")) is not False:
        return
    for name in ("configure_optimizers", "training_step"):
        found = classes.find_method(module.cls, name)
        if found is not None:
            calls.call(torch.interpreter, classes.bind(found[0], module, found[1]), [], {}, node)


def manual_backward(
    torch: Torch, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`self.manual_backward(loss)` scales the loss where the trainer is asked for float16."""
    torch.met("lightning")
    torch.outside_scaling = torch.training.trained = True
    asked = [constant(given) for given in torch.training.precisions]
    if asked and all(LIGHTNING.dtypes("autocast").get(str(word)) == "float16" for word in asked):
        scaling.runner_backward(torch, node)
    elif not torch.training.mixed and args:
        torch.training.begun.append((operands.as_tensor(torch, args[0]), torch.spot(node), True))
    return unknown()


def clip_gradients(
    torch: Torch, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`self.clip_gradients(optimizer, ...)` unscales first."""
    scaling.runner_unscaled(torch)
    return unknown()


CALLS: Mapping[str, Call] = {
    **{f"{package}.Trainer": trainer for package in LIGHTNING.named("packages")},
    **{f"{package}.Fabric": runners.loop_runner for package in LIGHTNING.named("packages")},
    **{f"{package}.{plugin}": runners.precision_plugin for package in PLUGINS for plugin in LIGHTNING.named("plugins")},
}
METHODS: Mapping[str, Method] = {
    **{f"{package}.Fabric": runners.method for package in LIGHTNING.named("packages")},
    **{f"{package}.Trainer": method for package in LIGHTNING.named("packages")},
}
ON_UNKNOWN: Mapping[str, Method] = {"manual_backward": manual_backward, "clip_gradients": clip_gradients}
