"""Where an op belongs: the user's line, the module that runs, the phase; in backward those of the forward op."""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Site
from .. import torch_private as private
from ..operations import BACKWARD, FORWARD, OPTIMIZER
from ..sites import is_user_file, site_of
from ..trackers.modules import Modules
from ..trackers.window import Window

NONE = object()
"""No module, of what is not to be looked for."""
_CALL = torch.nn.Module._call_impl.__code__
PHASES = ("forward", "backward", "after backward", "optimizer")


class Place(NamedTuple):
    """Where one op belongs."""

    site: Site | None
    module: str
    phase: str
    inside: bool = True
    """It belongs to an operation of the forward pass; what adds up the gradients of parameters does not."""


class Places:
    """Of the ops of one step."""

    def __init__(self, window: Window, modules: Modules) -> None:
        self._window, self._modules = window, modules
        self._forward: dict[int, tuple[Site | None, str]] = {}
        """Autograd sequence number -> the place of the op of the forward pass that got it."""
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def of(self, given: list[Tensor]) -> Place:
        """The place of the op that has just run on these."""
        phase = self.phase()
        if phase == BACKWARD:
            known = self._forward.get(private.running_node())
            if known is not None:
                return Place(*known, PHASES[phase])
            return Place(self._around(False)[0], "", PHASES[phase], False)
        site, module = self._around(phase == FORWARD)
        if torch.is_grad_enabled() and phase != BACKWARD and any(one.requires_grad for one in given):
            self._forward[private.next_sequence_number() - 1] = (site, module)
        return Place(site, module, PHASES[phase])

    def phase(self) -> int:
        """The window's, but forward inside a closure and where a checkpoint computes its part again."""
        phase = self._window.phase
        if torch.is_grad_enabled() and (phase == OPTIMIZER or (phase == BACKWARD and not self._window.creates_graph)):
            return FORWARD
        return phase

    def clear(self) -> None:
        self._forward.clear()

    def _around(self, in_module: bool) -> tuple[Site | None, str]:
        """The user's innermost line, and in forward the name of the innermost module that is called."""
        frame: FrameType | None = sys._getframe(2)
        site, module = None, None if in_module else NONE
        while frame is not None and (site is None or module is None):
            code = frame.f_code
            if code is _CALL:
                module = frame.f_locals["self"] if module is None else module
            elif site is None and is_user_file(code.co_filename):
                site = site_of(frame)
            frame = frame.f_back
        return site, "" if module is None or module is NONE else self._name(module)

    def _name(self, module: Any) -> str:
        name = self._names.get(module)
        if name is None:
            name = self._names[module] = self._modules.module_name(module) or type(module).__name__
        return name
