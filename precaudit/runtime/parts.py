"""Makes the parts of a trace: each names those it needs as arguments of its constructor, by their class.

`class Softmax: def __init__(self, ledger: Ledger, flow: Flow)` gets the one ledger and the one flow of the trace. A
part is made when it is first needed, after all that it needs: two that need each other cannot be made.
"""

from __future__ import annotations

import importlib
import pkgutil
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

import torch

OF_THE_PROGRAM = ("trackers", "watchers", "frameworks", "exact")
"""Folders whose parts keep what they saw of the program."""
WEAK = (weakref.WeakKeyDictionary, weakref.WeakSet)

T = TypeVar("T")


class Parts:
    """The parts of one trace, by class; what is `given` is there from the beginning.

    Whoever names a class of `for_these` gets the part of the class that stands beside it: what is asked of a tracker
    below the trackers, or of the frameworks below these.
    """

    def __init__(self, *given: Any, for_these: Mapping[type, type]) -> None:
        self._made: dict[type, Any] = {type(one): one for one in (*given, self)}
        self._for_these = for_these
        self._begun: list[type] = []

    def get(self, kind: type[T]) -> T:
        """The part of this class, made now if it is the first time that somebody needs it."""
        if kind in self._for_these:
            return self.get(self._for_these[kind])
        if kind not in self._made:
            if kind in self._begun:
                raise TypeError(f"these parts need each other: {', '.join(one.__name__ for one in self._begun)}")
            self._begun.append(kind)
            needs = {name: need for name, need in get_type_hints(kind.__init__).items() if name != "return"}
            self._made[kind] = kind(**{name: self.get(need) for name, need in needs.items()})
            self._begun.remove(kind)
        found: T = self._made[kind]
        return found

    def let_go(self) -> None:
        """Drops what they hold of the program: its tensors, modules, optimizers and scalers, which can be counted.

        What is written and stopped by is kept, that of the process.
        """
        for kind, part in self._made.items():
            if kind.__module__.partition(f"{__package__}.")[2].partition(".")[0] not in OF_THE_PROGRAM:
                continue
            for name, held in list(getattr(part, "__dict__", {}).items()):
                if isinstance(held, WEAK):
                    held.clear()  # who holds the same table finds it empty
                elif type(held) in (dict, list, set, tuple):
                    setattr(part, name, type(held)())
                elif isinstance(held, (torch.Tensor, torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler)):
                    setattr(part, name, None)


def find(folder: str, base: type[T]) -> list[type[T]]:
    """The classes of this kind in the files of a package, in the order of the files' names."""
    package: ModuleType = importlib.import_module(folder)
    found: list[type[T]] = []
    for name in sorted(f"{folder}.{each.name}" for each in pkgutil.iter_modules(package.__path__)):
        held = vars(importlib.import_module(name)).values()
        found += [one for one in held if isinstance(one, type) and issubclass(one, base) and one.__module__ == name]
    return found
