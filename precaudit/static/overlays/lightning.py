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
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

LIGHTNING = framework("lightning")
PLUGINS = [f"{package}.plugins{inner}" for package in LIGHTNING.named("packages") for inner in ("", ".precision")]
TRUE_HALF = ("16-true", "bf16-true")
"""Precisions in which parameters and optimizer state are 16 bits wide."""


def is_lightning(cls: Class) -> bool:
    return any(base.endswith("LightningModule") for base in classes.library_bases(cls))


def trainer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Trainer(precision=...)`."""
    run.met("lightning")
    given = runners.precision_of(kwargs)
    run.training.mixed |= "\0rest" in kwargs or not _unmixed(given)
    run.training.precisions.append(given or NONE)
    made = Instance(Ref(name), {"\0trainer": True})
    if constant(given) in TRUE_HALF:
        run.training.true_half.append((run.spot(node), constant(given), made.store))
    return made


def method(run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A method of a Trainer: only `fit` trains."""
    if name == "fit":
        run.training.trained = True
        run.interpreter.heap.put(receiver.store, "\0trains", True)
        _fit(run, args[0] if args else kwargs.get("model", unknown()), node)
    elif name in ("predict", "test", "validate"):
        run.interpreter.heap.put(receiver.store, "\0predicts", True)
    return unknown()


def _unmixed(precision: Value | None) -> bool:
    """Whether the training step certainly runs without autocast."""
    return precision is None or str(constant(precision)) in LIGHTNING.dtypes("parameters")


def context(cls: Class, function: Function) -> Any:
    """Some methods of a LightningModule are called under no_grad."""
    if function.node.name.value in LIGHTNING.named("without_grad") and is_lightning(cls):
        return Context("no_grad")
    return None


def returned(run: Run, cls: Class, name: str, value: Value, node: Any) -> None:
    """The loss that Lightning gets from `training_step`."""
    if name == "training_step" and is_lightning(cls):
        run.met("lightning")
        loss = value.store.get("loss") if isinstance(value, Dict) else value
        if isinstance(loss, Value):
            run.training.returned.append((operands.as_tensor(run, loss), run.spot(node)))


def _fit(run: Run, module: Value, node: Any) -> None:
    """Runs what Lightning calls of a module that optimizes by itself, in the order in which it does."""
    if not isinstance(module, Instance) or constant(module.store.get("automatic_optimization")) is not False:
        return
    for name in ("configure_optimizers", "training_step"):
        found = classes.find_method(module.cls, name)
        if found is not None:
            calls.call(run.interpreter, classes.bind(found[0], module, found[1]), [], {}, node)


def manual_backward(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`self.manual_backward(loss)` scales the loss where the trainer is asked for float16."""
    run.met("lightning")
    run.training.outside_scaling = run.training.trained = True
    asked = [constant(given) for given in run.training.precisions]
    if asked and all(LIGHTNING.dtypes("autocast").get(str(word)) == "float16" for word in asked):
        tell(run, "runner.backward", [], node)
    elif not run.training.mixed and args:
        run.training.begun.append((operands.as_tensor(run, args[0]), run.spot(node), True))
    return unknown()


def clip_gradients(
    run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`self.clip_gradients(optimizer, ...)` unscales first."""
    tell(run, "runner.unscale", [], node)
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
