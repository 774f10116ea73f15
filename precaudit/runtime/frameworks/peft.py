"""PEFT: which parameters are adapters, by PEFT's own account rather than by their names, and who recast them since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ...model.vocabulary import Cause, Role, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..guard import Guard
from ..patching import patch
from ..sites import user_site
from ..trackers.claims import Claim
from ..trackers.modules import Modules
from . import Framework, imported


class PEFT(Framework):
    """A tuner layer lists its containers of adapter weights in `adapter_layer_names`.

    PEFT makes low adapters float32 (autocast_adapter_dtype) after it has added them. Where they are low at a step
    nevertheless, someone set their `.data`, which no hook sees: the finding says so.
    """

    title = "PEFT"
    order = 20
    classes = ("peft",)
    awaits = ("peft.tuners.tuners_utils",)

    def __init__(self, guard: Guard, modules: Modules) -> None:
        self._guard, self._modules = guard, modules
        self._layers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._made: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Site | None]]] = weakref.WeakKeyDictionary()
        """Module -> for each adapter weight in it its dtype when PEFT was done with it, and the user's line."""

    def install(self) -> Iterable[Callable[[], None]]:
        tuners = imported("peft.tuners.tuners_utils", "BaseTuner")
        return [patch(kind, "_cast_adapter_dtype", self._around_cast) for kind in tuners]

    def _around_cast(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _cast_adapter_dtype(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(tuner, *args, **kwargs)
            self._guard("PEFT's cast of its adapters", self._made_by, tuner, user_site())
            return out

        return _cast_adapter_dtype

    def _made_by(self, tuner: Any, site: Site | None) -> None:
        for layer in tuner.modules():
            for parameter in _adapters_of(layer):
                owner = self._modules.owner_of(parameter)
                if owner is not None:
                    self._made.setdefault(owner[0], {}).setdefault(owner[1], (parameter.dtype, site))

    def meet(self, made: Any, site: Site | None) -> None:
        if hasattr(made, "adapter_layer_names"):
            self._layers.add(made)

    def claims(self) -> Iterable[Claim]:
        for layer in self._layers:
            for parameter in _adapters_of(layer):
                yield Claim(parameter, Role.ADAPTER_PARAMETER)

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        module, name = self._modules.owner_of(parameter) or (None, "")
        made = self._made.get(module) if module is not None else None
        dtype, site = (made or {}).get(name, (None, None))
        if dtype is None or dtype in LOW or parameter.dtype not in LOW:
            return None
        was, is_now = DTYPE_NAMES[dtype], DTYPE_NAMES[parameter.dtype]
        return Cause(f"PEFT made the adapters {was} here; their .data was recast to {is_now} later", site)


def _adapters_of(layer: Any) -> Iterator[Tensor]:
    for name in getattr(layer, "adapter_layer_names", ()):
        held = getattr(layer, name, None)
        if isinstance(held, (nn.Module, nn.ParameterDict)):
            yield from held.parameters()
