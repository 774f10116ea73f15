"""Transformers models: whether `from_pretrained` was told a dtype, or kept the one of the checkpoint."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause
from ..dtypes import DTYPE_NAMES, LOW
from ..trackers.modules import Modules
from . import Framework, imported


class Transformers(Framework):
    """Parameters are plain ones under the user's own names; only the reason for their dtype needs the framework."""

    title = "Transformers"
    order = 110
    classes = ("transformers",)
    awaits = ("transformers.modeling_utils",)

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._loaded: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        """Model -> whether its dtype was asked for."""

    def install(self) -> Iterable[Callable[[], None]]:
        return [self._watch_loading(kind) for kind in imported("transformers.modeling_utils", "PreTrainedModel")]

    def _watch_loading(self, kind: Any) -> Callable[[], None]:
        mine = vars(kind)["from_pretrained"]

        @functools.wraps(mine.__func__)
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            asked = kwargs.get("dtype", kwargs.get("torch_dtype")) not in (None, "auto")
            out = mine.__func__(cls, *args, **kwargs)
            self._loaded[out[0] if isinstance(out, tuple) else out] = asked
            return out

        patched = classmethod(from_pretrained)
        kind.from_pretrained = patched

        def undo() -> None:
            if vars(kind).get("from_pretrained") is patched:
                kind.from_pretrained = mine

        return undo

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        if parameter.dtype not in LOW or found is None or not found.text.startswith("parameters were made"):
            return None
        modules = self._modules
        models = [m for m in modules.around(modules.holder(parameter)) if m in self._loaded]
        if not models or self._loaded[models[0]]:
            return None
        return Cause(f"from_pretrained kept the checkpoint's own dtype, {DTYPE_NAMES[parameter.dtype]}", found.site)
