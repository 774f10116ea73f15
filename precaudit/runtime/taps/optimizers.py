"""Tells of every optimizer step, by torch's global step hooks; a step inside a step counts once, for the outermost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .. import torch_private as private
from ..events import Bus, StepCalled, StepFailed, StepNested, StepReturned, StepRuns
from ..guard import Guard
from ..patching import Undo
from . import Tap


class StepTap(Tap):
    """A step inside a step is `super().step`, or that of a wrapper's inner optimizer."""

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus, self._guard = bus, guard
        self._depth = 0
        self._stepping: Any = None
        """The outermost optimizer that is inside its step."""
        self._hooks: list[Any] = []
        self.stays = False
        """The hooks are left where they are, silent: compiled code is guarded by torch's table of them."""
        self._called = False
        """torch is walking through its table of hooks, and is at ours."""

    def install(self) -> Iterable[Undo]:
        self._hooks.append(register_optimizer_step_pre_hook(self._before))
        self._hooks.append(register_optimizer_step_post_hook(self._after))
        return ()

    def remove(self) -> Callable[[], None]:
        """Takes the hooks out; where torch walks through them just now, at the next backward, or by what is returned.

        The walk would break off, and the user's own hooks go unheard. Call it when nothing else is patched any more.
        Where compiled code is guarded by the table of hooks they stay, tell nobody any more, and nothing is recompiled.
        """
        if private.hooks_are_compiled():
            self.stays = True
            return lambda: None
        if self._called:
            return private.before_next_backward(self._take_out)
        self._take_out()
        return lambda: None

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # no op of ours in the user's graph, and no break of it either
            return
        self._guard.ask("an optimizer step", self._begins, optimizer, len(args) > 1 or bool(kwargs), otherwise=None)

    def _begins(self, optimizer: Any, given: bool) -> None:
        if self._depth:
            self.give_up_failed(own=1)
        self._depth += 1
        if self._depth == 1:
            self._stepping = optimizer
            self._tell(StepCalled(optimizer, given))
            self._tell(StepRuns())
        elif optimizer is not self._stepping:
            self._tell(StepNested(optimizer))

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._guard.ask("an optimizer step", self._ends, optimizer, otherwise=None)

    def _ends(self, optimizer: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._stepping = None
            self._tell(StepReturned(optimizer))

    def _tell(self, event: Any) -> None:
        self._called = True
        try:
            self._bus.tell(event)
        finally:
            self._called = False

    def give_up_failed(self, own: int = 0) -> None:
        """A step that raised, as out of its closure, calls no hook: it is over when it is on the stack no more.

        `own` is 1 where the step that now begins is on the stack already.
        """
        if self._depth and private.steps_on_stack() <= own:
            self._depth, self._stepping = 0, None
            self._bus.tell(StepFailed())
