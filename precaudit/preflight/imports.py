"""While packages that load binaries for a device are imported they hear that there is none."""

from __future__ import annotations

import sys
from typing import Any

from .patches import Patches

NAMES = frozenset(
    "bitsandbytes torchao torch._dynamo torch._inductor torch.distributed._symmetric_memory flash_attn xformers apex "
    "transformer_engine triton deepspeed.ops".split()
)
"""Modules that choose what to load by asking what device there is."""


class Honest:
    """A finder that finds nothing: it counts how many of these modules are being executed."""

    def __init__(self) -> None:
        self._inside = 0

    def __call__(self) -> bool:
        """Whether the one who asks for a device now is to hear the truth."""
        return self._inside > 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that others find, its module executed with the truth in its ears."""
        if name not in NAMES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None and spec.loader is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module: Any) -> None:
            del loader.exec_module
            self._inside += 1
            try:
                execute(module)
            finally:
                self._inside -= 1

        loader.exec_module = exec_module

    def install(self, patches: Patches) -> None:
        """Begins to listen to imports."""
        sys.meta_path.insert(0, self)
        patches.undo.callback(lambda: sys.meta_path.remove(self))
