"""Lightning and Fabric: the precision of their trainers, and what Lightning calls of a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.model.vocabulary import Kind
from precaudit.static.language import classes
from precaudit.static.language.values import Class, Context, Dict, Function, Value, constant, unknown
from precaudit.static.overlays import Call, Method, runners
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch

LIGHTNING = framework("lightning")
TRUE_HALF = ("16-true", "bf16-true")
"""Precisions in which parameters and optimizer state are 16 bits wide."""


def is_lightning(cls: Class) -> bool:
    return any(base.endswith("LightningModule") for base in classes.library_bases(cls))


def trainer(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Trainer(precision=...)`."""
    precision = constant(kwargs.get("precision"))
    if precision in TRUE_HALF:
        torch.facts.add(Kind.CONFIG, torch.spot(node), precision=precision, key="precision")
    torch.training.mixed |= "\0rest" in kwargs or not _unmixed(kwargs.get("precision"))
    torch.training.trained = True
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
        loss = value.store.get("loss") if isinstance(value, Dict) else value
        if isinstance(loss, Value):
            torch.training.returned.append((operands.as_tensor(torch, loss), torch.spot(node)))


CALLS: Mapping[str, Call] = {
    **{f"{package}.Trainer": trainer for package in LIGHTNING.named("packages")},
    **{f"{package}.Fabric": runners.loop_runner for package in LIGHTNING.named("packages")},
}
METHODS: Mapping[str, Method] = {f"{package}.Fabric": runners.method for package in LIGHTNING.named("packages")}
