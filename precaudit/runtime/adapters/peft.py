"""PEFT: which parameters are adapters, by PEFT's own account rather than by their names."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...model.vocabulary import Role, Site
from . import Adapter, Claim

if TYPE_CHECKING:
    from ..session import Session


class PEFT(Adapter):
    """A tuner layer lists its containers of adapter weights in `adapter_layer_names`."""

    title = "PEFT"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._layers: weakref.WeakSet[Any] = weakref.WeakSet()

    def meet(self, made: Any, site: Site | None) -> None:
        if isinstance(made, nn.Module) and hasattr(made, "adapter_layer_names"):
            self._layers.add(made)

    def claims(self) -> Iterable[Claim]:
        for layer in self._layers:
            for parameter in _adapters_of(layer):
                yield Claim(parameter, Role.ADAPTER_PARAMETER)


def _adapters_of(layer: Any) -> Iterator[Tensor]:
    for name in layer.adapter_layer_names:
        held = getattr(layer, name, None)
        if isinstance(held, (nn.Module, nn.ParameterDict)):
            yield from held.parameters()


ADAPTER = PEFT
