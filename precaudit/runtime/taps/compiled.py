"""Tells of `torch.compile`, and of the graphs that AOTAutograd makes; the code that runs is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .. import torch_private as private
from ..events import Bus, CompileCalled, GraphCompiled
from ..guard import Guard
from ..patching import Undo, patch
from ..settings import Settings
from . import Tap


class CompileTap(Tap):
    """The graphs are asked for once something is to be compiled: that imports Dynamo."""

    def __init__(self, bus: Bus, guard: Guard, settings: Settings) -> None:
        self._bus, self._guard, self._settings = bus, guard, settings
        self._undo: Undo | None = None
        self._asked = False

    def install(self) -> Iterable[Undo]:
        yield self._take_out
        yield patch(torch, "compile", self._around)

    def _take_out(self) -> None:
        if self._undo is not None:
            self._undo()

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compile(*args: Any, **kwargs: Any) -> Any:
            if self._settings.eager:
                self._guard.note("torch.compile was off: what it was given ran eagerly (--eager)")
                return original(*args, **{**kwargs, "disable": True})
            made = original(*args, **kwargs)
            self._bus.tell(CompileCalled(kwargs.get("backend", "inductor")))
            self._guard("torch.compile", self._watch)
            return made

        return compile

    def _watch(self) -> None:
        if self._asked:
            return
        self._asked = True
        self._undo = private.watch_graphs(lambda aot_id, stage, ops: self._bus.tell(GraphCompiled(aot_id, stage, ops)))
        if self._undo is None:
            self._guard.note("this torch does not show the graphs of compiled regions: what they hold is unknown")
