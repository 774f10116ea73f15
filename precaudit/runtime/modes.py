"""Our dispatch modes: below all others on the stack, in only while needed, never seen by our own arithmetic."""

from __future__ import annotations

import gc
from typing import Any

import torch

from . import torch_private as private


class OurMode(private.DispatchMode):  # type: ignore[misc]
    """A dispatch mode of the trace. A forked DataLoader worker would inherit it: it is taken out in the child."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        private.stays_out_of_forks(self)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps this method in torch._disable_dynamo: 4 of the 9 µs an empty mode costs. hide_from_dynamo
        # does the same for less.
        return False


class Modes:
    """Which of our modes are in."""

    def __init__(self) -> None:
        self._ours: list[OurMode] = []

    def put_in(self, mode: OurMode) -> None:
        """Begins to see ops through this mode."""
        self._ours.append(mode)
        private.insert_at_bottom(mode)

    def take_out(self, mode: OurMode) -> None:
        """Ends it, wherever in the stack it is."""
        self._ours.remove(mode)
        private.take_out(mode)

    def restore(self) -> None:
        """Backward gives its thread the modes it began with: what was put in or taken out meanwhile is done again."""
        private.take_out_all((OurMode,))
        for mode in self._ours:
            private.insert_at_bottom(mode)

    def aside(self) -> Aside:
        """Keeps what we compute ourselves from our modes, and from the user's, who may count what they see."""
        return Aside(self)

    def put_back(self, outer: list[Any]) -> None:
        """Puts modes back that were set aside; meanwhile one of ours may have been put in, or taken out."""
        inner = private.pop_all()
        private.push_all(inner)
        for mode in outer:
            if not isinstance(mode, OurMode):
                private.push_all([mode])
            elif any(mode is own for own in self._ours) and not any(mode is own for own in inner):
                private.insert_at_bottom(mode)


class Aside:
    """Inside of it no mode is on, and no graph is made. A class: as a generator it would take three times as long.

    Python's collector of cycles waits: what we make and drop here would have it look through all that the program
    holds, sooner than the program alone would.
    """

    __slots__ = ("_collects", "_functions", "_grad", "_modes", "_outer")

    def __init__(self, modes: Modes) -> None:
        self._modes = modes

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()
        self._grad = torch.is_grad_enabled()
        self._outer = private.pop_all()
        self._functions = private.no_function_modes()
        self._functions.__enter__()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *raised: Any) -> None:
        torch._C._set_grad_enabled(self._grad)
        self._functions.__exit__(*raised)
        if self._outer:
            self._modes.put_back(self._outer)
        if self._collects:
            gc.enable()
