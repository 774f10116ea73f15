"""Calls back when a module of a framework has been imported, so that the first object it builds is already seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class ImportWatcher:
    """A finder in front of `sys.meta_path` that finds nothing itself: it adds one call after a module has run."""

    def __init__(self, watched: Mapping[str, Callable[[], object]]) -> None:
        self.watched = watched

    def install(self) -> Callable[[], None]:
        """Calls at once for what is imported already. Returns the undo."""
        for name, call in self.watched.items():
            if isinstance(sys.modules.get(name), ModuleType):
                call()
        sys.meta_path.insert(0, self)
        return self._remove

    def _remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.watched:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if finder is not self and find is not None else None
            if spec is not None:
                self._follow(spec.loader, self.watched[name])
                return spec
        return None

    @staticmethod
    def _follow(loader: Any, call: Callable[[], object]) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module: Any) -> None:
            del loader.exec_module  # of this one loader object: it stays what it was
            execute(module)
            call()

        loader.exec_module = exec_module
