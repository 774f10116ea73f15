"""Tells what modules are given, cast to and loaded with: parameters, buffers, children, `half()`, `load_state_dict`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as modules

from ..events import BufferRegistered, Bus, ModuleCast, ModuleRegistered, ParameterRegistered, StateLoaded
from ..guard import Guard
from ..patching import Undo, patch
from . import Tap

CASTS = ("to", "half", "bfloat16", "float", "double", "type")


class ModuleTap(Tap):
    """A cast inside a cast, as `half` calls `to` of its own, is told once, for the outermost.

    Known limitations: copies made by `copy.deepcopy` or unpickling are not told of, only their later casts.
    """

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus, self._guard = bus, guard
        self._depth = 0

    def install(self) -> Iterable[Undo]:
        yield modules.register_module_parameter_registration_hook(self._guarded(self._parameter)).remove
        yield modules.register_module_module_registration_hook(self._guarded(self._module)).remove
        yield modules.register_module_buffer_registration_hook(self._guarded(self._buffer)).remove
        for name in CASTS:
            yield patch(torch.nn.Module, name, partial(self._around_cast, name))
        yield patch(torch.nn.Module, "load_state_dict", self._around_load)

    def _guarded(self, told: Callable[..., None]) -> Callable[..., None]:
        def registered(*args: Any) -> None:
            self._guard.ask("what a module was given", told, *args, otherwise=None)

        return registered

    def _parameter(self, module: Any, name: str, parameter: Any) -> None:
        if isinstance(parameter, Tensor):
            self._bus.tell(ParameterRegistered(module, name, parameter))

    def _module(self, module: Any, name: str, child: Any) -> None:
        if isinstance(child, torch.nn.Module):
            self._bus.tell(ModuleRegistered(module, name, child))

    def _buffer(self, module: Any, name: str, buffer: Any) -> None:
        if isinstance(buffer, Tensor):
            self._bus.tell(BufferRegistered(buffer))

    def _around_cast(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def cast(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return original(module, *args, **kwargs)
            before: dict[int, torch.dtype] = {}
            self._guard("cast", _note_dtypes, module, before)
            self._depth += 1
            try:
                out = original(module, *args, **kwargs)
            finally:
                self._depth -= 1
            self._bus.tell(ModuleCast(module, name, before))
            return out

        return cast

    def _around_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(module: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(module, *args, **kwargs)
            self._bus.tell(StateLoaded())
            return out

        return load_state_dict


def _note_dtypes(module: Any, dtypes: dict[int, torch.dtype]) -> None:
    dtypes.update({id(p): p.dtype for p in (*module.parameters(), *module.buffers())})
