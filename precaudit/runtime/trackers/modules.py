"""The tree of modules: who holds what under which name, who was cast where, what was built and loaded where."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause, Site
from .claims import Accounts
from .holders import Holders, Places, holding
from .tensors import Tensors

DEEPEST = 64
"""Levels of modules within modules that a name is followed through."""
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Names under which torch.compile and torch's checkpoint wrapper hold the user's own module."""


class Modules:
    """By weak reference: a module that goes is forgotten."""

    def __init__(self, tensors: Tensors, holders: Holders, accounts: Accounts) -> None:
        self._tensors, self.holders, self._accounts = tensors, holders, accounts
        self.parents: weakref.WeakKeyDictionary[Any, Places] = weakref.WeakKeyDictionary()
        self.cast_at: weakref.WeakKeyDictionary[Any, Cause] = weakref.WeakKeyDictionary()
        """Module -> the last cast of its tensors."""
        self.built_at: weakref.WeakKeyDictionary[Any, Site] = weakref.WeakKeyDictionary()
        """Optimizer or GradScaler -> the user's line that made it."""
        self.loaded_at: Site | None = None
        """Where weights were last read from a state dict."""

    # -- questions

    def why_low(self, parameter: Tensor) -> Cause | None:
        """The cast or the construction that put this parameter into low precision."""
        known = self._tensors.of(parameter)
        cause = known.cast
        if cause is None:
            module = self.holder(parameter)
            cause = self.cast_at.get(module) if module is not None else None
        return self._accounts.by.cause(parameter, cause or known.born_low)

    def owner_of(self, parameter: Tensor) -> tuple[Any, str] | None:
        """The module that holds a parameter, and its name there."""
        return next(self.holders.of(parameter), None) or self._accounts.by.owner(parameter)

    def name(self, parameter: Tensor) -> str:
        """The parameter's fully qualified name, by the framework that moved it or else by its modules."""
        known = self._accounts.by.parameter_name(parameter)
        if known:
            return known
        owner = self.owner_of(parameter)
        if owner is None:
            return ""
        front = self.module_name(owner[0])
        return f"{front}.{owner[1]}" if front else owner[1]

    def module_name(self, module: Any) -> str:
        """The module's fully qualified name below its root; the root itself is ""."""
        parts: list[str] = []
        for _ in range(DEEPEST if module is not None else 0):
            place = next(holding(self.parents.get(module), module), None)
            if place is None:
                break
            module, name = place
            if name not in WRAPPERS and not self._accounts.by.inserted(module, name):
                parts.append(name)
        return ".".join(reversed(parts))

    def around(self, module: Any) -> list[Any]:
        """The module and those that hold it, innermost first."""
        found = [module]
        for _ in range(DEEPEST if module is not None else 0):
            place = next(holding(self.parents.get(found[-1]), found[-1]), None)
            if place is None:
                break
            found.append(place[0])
        return found

    def holder(self, parameter: Tensor) -> Any:
        """The module that holds this parameter."""
        owner = self.owner_of(parameter)
        return owner[0] if owner is not None else None
