"""Calls back once a module has been imported, so that a framework's classes can be patched before their first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any


class ImportWatcher:
    """The first finder on `sys.meta_path`: finds nothing itself, adds one call after a module of the table has run."""

    def __init__(self, awaited: Mapping[str, Callable[[], None]]) -> None:
        self.awaited = dict(awaited)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        act = self.awaited.pop(name, None)
        if act is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if finder is not self and find is not None else None
            if spec is not None:
                _call_after(spec, act)
                return spec
        return None


def when_imported(awaited: Mapping[str, Callable[[], None]]) -> Callable[[], None]:
    """Calls each function after its module was imported, at once where it already is; returns the undo."""
    watcher = ImportWatcher({name: act for name, act in awaited.items() if name not in sys.modules})
    for name, act in awaited.items():
        if name not in watcher.awaited:
            act()
    sys.meta_path.insert(0, watcher)

    def undo() -> None:
        watcher.awaited.clear()
        if watcher in sys.meta_path:
            sys.meta_path.remove(watcher)

    return undo


def _call_after(spec: Any, act: Callable[[], None]) -> None:
    # An attribute of this one loader object, taken off before use: the module's __loader__ stays what it was.
    loader = spec.loader
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: Any) -> None:
        del loader.exec_module
        execute(module)
        act()

    try:
        loader.exec_module = exec_module
    except AttributeError:  # a loader that takes no attributes
        return
