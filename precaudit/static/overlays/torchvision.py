"""torchvision: its classifiers, as a convolution, a norm and a linear layer in the default dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language.heap import Store
from precaudit.static.language.values import Instance, Ref, Value, constant
from precaudit.static.overlays import Call, others
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

STATISTICS = framework("torchvision").named("with_running_statistics")
PLAIN = framework("torchvision").named("without")


def model(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torchvision.models.resnet50()`; what is no classifier may give anything."""
    last = name.rpartition(".")[2]
    if last == "get_model" and isinstance(named := constant(args[0] if args else kwargs.get("name")), str):
        last = named
    if last.startswith(STATISTICS):
        return _network(run, ("Conv2d", "BatchNorm2d", "Linear"), node)
    if last.startswith(PLAIN):
        return _network(run, ("Conv2d", "Linear"), node)
    return others.unfamiliar(run, name, args, kwargs, node)


def _network(run: Run, kinds: tuple[str, ...], node: Any) -> Value:
    layers: Store = {}
    for number, kind in enumerate(kinds):
        store: Store = {}
        modules.build(run, kind, [], {}, node, store)
        layers[str(number)] = Instance(Ref(f"torch.nn.{kind}"), store)
    return Instance(Ref("torch.nn.Sequential"), layers)


CALLS: Mapping[str, Call] = {"torchvision.models.*": model}
