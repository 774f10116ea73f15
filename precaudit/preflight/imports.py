"""What is done as a module is imported: some hear that there is no device, some are changed once they are there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from .patches import Patches

HONEST = (
    "bitsandbytes", "torchao", "torch._dynamo", "torch._inductor", "torch.distributed._symmetric_memory", "flash_attn",
    "xformers", "apex", "transformer_engine", "triton",
)  # fmt: skip
"""Modules that choose which binaries to load by asking what device there is."""


def hears_the_truth() -> bool:
    """Whether one of these is being imported now, and who asks for a device is to hear that there is none."""
    specs = (getattr(sys.modules.get(name), "__spec__", None) for name in HONEST)
    return any(getattr(spec, "_initializing", False) for spec in specs)


class Imports:
    """A finder that finds nothing: it changes a module when that has been executed."""

    def __init__(self, changes: Mapping[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that others find, followed while its module is executed."""
        if name not in self._changes:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None and spec.loader is not None:
                self._follow(name, spec.loader)
                return spec
        return None

    def _follow(self, name: str, loader: Any) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module: Any) -> None:
            del loader.exec_module
            execute(module)
            self._changes[name](module)

        loader.exec_module = exec_module

    def install(self, patches: Patches) -> None:
        """Begins to listen to imports; what has been imported is changed now."""
        for name, change in self._changes.items():
            if name in sys.modules:
                change(sys.modules[name])
        sys.meta_path.insert(0, self)
        patches.undo.callback(lambda: sys.meta_path.remove(self))
