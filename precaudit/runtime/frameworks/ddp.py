"""DistributedDataParallel: who decides in which dtype gradients are reduced, and where."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...model.vocabulary import Role, Site
from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES
from ..guard import Guard
from ..patching import patch
from ..sites import user_site
from ..trackers.claims import Declaration
from . import Framework

HOOKS: Mapping[str, str] = {"fp16_compress_hook": "float16", "bf16_compress_hook": "bfloat16"}
"""torch's own compressing hooks, by `__name__`. Source: torch.distributed.algorithms.ddp_comm_hooks.default_hooks."""


class DDP(Framework):
    """Hooks are read off the wrapper itself; only the line that set them needs a patch."""

    title = "DDP"
    order = 100
    classes = ("torch.nn.parallel.distributed",)
    inserts = frozenset({"module"})

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._wrapped_at: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()
        self._hooked_at: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()

    def install(self) -> Iterable[Callable[[], None]]:
        import torch.nn.parallel

        ddp = torch.nn.parallel.DistributedDataParallel
        return [patch(ddp, "register_comm_hook", self._around_register)]

    def _around_register(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def register_comm_hook(ddp: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard("a comm hook", lambda: self._hooked_at.update({ddp: user_site()}))
            return original(ddp, *args, **kwargs)

        return register_comm_hook

    def meet(self, made: Any, site: Site | None) -> None:
        self._wrapped_at.setdefault(made, site)

    def declares(self) -> Iterable[Declaration]:
        for wrapper, site in self._wrapped_at.items():
            hooks = list(getattr(wrapper, "_comm_hooks", ()))
            for hook, _ in hooks:
                word = getattr(hook, "__name__", "a comm hook")
                yield Declaration(Role.GRADIENT_REDUCTION, HOOKS.get(word, ""), word, self._hooked_at.get(wrapper))
            if hooks:
                continue
            policy = getattr(wrapper, "mixed_precision", None)
            reduced = getattr(policy, "reduce_dtype", None)
            if reduced is not None:
                by = "mixed_precision of DistributedDataParallel"
                yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[reduced], by, site)
                continue
            # Buckets have the dtype of their parameters' gradients.
            for dtype in {p.dtype for p in wrapper.parameters() if p.requires_grad and p.dtype in FLOATING_DTYPES}:
                by = "as the parameters are"
                yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[dtype], by, site, "default")
