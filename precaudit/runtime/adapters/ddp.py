"""DistributedDataParallel: the comm hook that decides in which dtype gradients are reduced, and where it was set."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...model.vocabulary import Role, Site
from ..sites import user_site
from . import Adapter, Declaration

if TYPE_CHECKING:
    from ..session import Session

HOOKS: Mapping[str, str] = {"fp16_compress_hook": "float16", "bf16_compress_hook": "bfloat16"}
"""torch's own compressing hooks, by `__name__`. Source: torch.distributed.algorithms.ddp_comm_hooks.default_hooks."""


class DDP(Adapter):
    """Hooks are read off the wrapper itself; only the line that set them needs a patch."""

    title = "DDP"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._wrappers: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()

    def install(self) -> list[Callable[[], None]]:
        import torch.nn.parallel

        ddp = torch.nn.parallel.DistributedDataParallel
        return [self.session.patch(ddp, "register_comm_hook", self._around_register)]

    def _around_register(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def register_comm_hook(ddp: Any, *args: Any, **kwargs: Any) -> Any:
            self._wrappers[ddp] = user_site()
            return original(ddp, *args, **kwargs)

        return register_comm_hook

    def meet(self, made: Any, site: Site | None) -> None:
        self._wrappers.setdefault(made, None)

    def declares(self) -> Iterable[Declaration]:
        for wrapper, site in self._wrappers.items():
            for hook, _ in getattr(wrapper, "_comm_hooks", ()):
                word = getattr(hook, "__name__", "a comm hook")
                yield Declaration(Role.GRADIENT_REDUCTION, HOOKS.get(word, ""), word, site)


ADAPTER = DDP
