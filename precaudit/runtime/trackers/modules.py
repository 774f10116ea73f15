"""The tree of modules: who holds what under which name, who was cast where, what was built and loaded where."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..events import (
    BufferRegistered,
    Bus,
    ModuleCast,
    ModuleFound,
    ModuleRegistered,
    OptimizerBuilt,
    ParameterRegistered,
    ScalerBuilt,
    StateLoaded,
    StepCalled,
)
from ..sites import user_site
from .claims import Account
from .holders import Holders, Places, holding, register
from .tensors import Tensors

DEEPEST = 64
"""Levels of modules within modules that a name is followed through."""
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Names under which torch.compile and torch's checkpoint wrapper hold the user's own module."""


class Modules:
    """By weak reference: a module that goes is forgotten."""

    def __init__(self, bus: Bus, tensors: Tensors, holders: Holders, account: Account) -> None:
        self._tensors, self.holders, self._account = tensors, holders, account
        self.parents: weakref.WeakKeyDictionary[Any, Places] = weakref.WeakKeyDictionary()
        self.cast_at: weakref.WeakKeyDictionary[Any, Cause] = weakref.WeakKeyDictionary()
        """Module -> the last cast of its tensors."""
        self.built_at: weakref.WeakKeyDictionary[Any, Site] = weakref.WeakKeyDictionary()
        """Optimizer or GradScaler -> the user's line that made it."""
        self.loaded_at: Site | None = None
        """Where weights were last read from a state dict."""
        bus.on(ParameterRegistered, self._parameter_registered)
        bus.on(BufferRegistered, self._buffer_registered)
        bus.on(ModuleRegistered, self._module_registered)
        bus.on(ModuleFound, self._module_found)
        bus.on(ModuleCast, self._module_cast)
        bus.on(StateLoaded, self._state_loaded)
        bus.on(OptimizerBuilt, lambda event: self._built(event.optimizer, event.site))
        bus.on(ScalerBuilt, lambda event: self._built(event.scaler, event.site))
        bus.on(StepCalled, self._step_called)

    # -- what torch tells

    def _parameter_registered(self, event: ParameterRegistered) -> None:
        parameter = event.parameter
        self.holders.registered(parameter, event.module, event.name)
        if parameter.dtype in LOW and self._tensors.of(parameter).born_low is None:
            cause = Cause(f"parameters were made in {DTYPE_NAMES[parameter.dtype]}", user_site())
            self._tensors.learn(parameter).born_low = cause

    def _buffer_registered(self, event: BufferRegistered) -> None:
        dtype = event.buffer.dtype
        if dtype in LOW:
            cause = Cause(f"it was registered in {DTYPE_NAMES[dtype]}", user_site())
            self._tensors.learn(event.buffer).low_buffer = cause

    def _module_registered(self, event: ModuleRegistered) -> None:
        register(self.parents.setdefault(event.child, []), event.module, event.name)

    def _module_found(self, event: ModuleFound) -> None:
        """Of what was there already the names are known, and no line that made it."""
        for module in event.module.modules():
            for name, child in module.named_children():
                register(self.parents.setdefault(child, []), module, name)
            for name, parameter in module.named_parameters(recurse=False):
                self.holders.registered(parameter, module, name)
                if parameter.dtype in LOW:
                    cause = Cause(f"parameters were {DTYPE_NAMES[parameter.dtype]} before the audit began", None)
                    self._tensors.learn(parameter).born_low = cause

    def _module_cast(self, event: ModuleCast) -> None:
        """A parameter keeps its identity when it is cast, a buffer is another tensor."""
        parameters, buffers, before = list(event.module.parameters()), list(event.module.buffers()), event.before
        changed = {p.dtype for p in parameters if before.get(id(p), p.dtype) is not p.dtype}
        changed |= {b.dtype for b in buffers if id(b) not in before}
        if not changed:
            return
        words = ", ".join(sorted(DTYPE_NAMES[dtype] for dtype in changed & LOW or changed))
        cause = Cause(f"parameters were cast to {words}", user_site())
        for child in event.module.modules():
            self.cast_at[child] = cause
        for buffer in buffers:
            if buffer.dtype in LOW and id(buffer) not in before:
                self._tensors.learn(buffer).low_buffer = cause
        for parameter in parameters:
            if parameter.dtype in LOW:
                self._tensors.learn(parameter).cast = cause

    def _state_loaded(self, event: StateLoaded) -> None:
        self.loaded_at = user_site()

    def _built(self, made: Any, site: Site | None) -> None:
        if site is not None and made not in self.built_at:
            self.built_at[made] = site

    def _step_called(self, event: StepCalled) -> None:
        """Of an optimizer that nobody saw being made, the line that steps is the one to show."""
        if event.optimizer not in self.built_at:
            self._built(event.optimizer, user_site())

    # -- questions

    def why_low(self, parameter: Tensor) -> Cause | None:
        """The cast or the construction that put this parameter into low precision."""
        known = self._tensors.of(parameter)
        cause = known.cast
        if cause is None:
            module = self.holder(parameter)
            cause = self.cast_at.get(module) if module is not None else None
        return self._account.cause(parameter, cause or known.born_low)

    def owner_of(self, parameter: Tensor) -> tuple[Any, str] | None:
        """The module that holds a parameter, and its name there."""
        return next(self.holders.of(parameter), None) or self._account.owner(parameter)

    def name(self, parameter: Tensor) -> str:
        """The parameter's fully qualified name, by the framework that moved it or else by its modules."""
        known = self._account.parameter_name(parameter)
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
            if name not in WRAPPERS and not self._account.inserted(module, name):
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
