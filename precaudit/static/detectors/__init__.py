"""One file per family of rules: what it listens to, what it remembers of tensors, and the Facts that it proves.

A detector is a module here with a function `listen(bus)`. It is found by being here; nothing lists it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from precaudit.static.overlays.bus import Bus


@cache
def found() -> list[Callable[[Bus], None]]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}").listen for name in names]


def attach(bus: Bus) -> None:
    """Subscribes every detector."""
    for listen in found():
        listen(bus)
