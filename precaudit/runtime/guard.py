"""Runs our own code inside the user's program: a fault of ours is a note in the report, an exception of theirs passes.

Known limitations: Python drops what is raised in a weak reference's callback or in `__del__`, the program's too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from .modes import Aside, Modes
from .sites import is_ours

T = TypeVar("T")


class Guard:
    """What stands between our code and the program; closed before the trace begins and after its end."""

    def __init__(self, modes: Modes) -> None:
        self.modes = modes
        self.open = False
        """The trace is installed."""
        self.notes: dict[str, None] = {}
        """What could not be followed, for the report."""

    def __call__(self, what: str, act: Callable[..., Any], *args: Any) -> None:
        """Calls `act(*args)`, unseen; what it raises becomes a note about `what`."""
        if not self.open:
            return
        try:
            with self.unseen():
                act(*args)
        except Exception as error:
            self.fault(what, error)

    def ask(self, what: str, act: Callable[..., T], *args: Any, otherwise: Any) -> T:
        """What `act(*args)` gives; `otherwise`, and a note about `what`, where it raises. Modes stay as they are."""
        try:
            return act(*args)
        except Exception as error:
            self.fault(what, error)
            instead: T = otherwise
            return instead

    def unseen(self) -> Aside:
        """Our own arithmetic leaves no graph and meets no mode."""
        return self.modes.aside()

    def fault(self, what: str, error: BaseException) -> None:
        """Notes a fault of ours. Call it in the `except`: what the program itself raised goes on from here."""
        if is_programs_own(error):
            raise error
        told = f"{type(error).__name__}: {str(error)[:200]}"
        self.note(f"precaudit could not follow {what}, and judged nothing that rests on it; please report this: {told}")

    def note(self, text: str) -> None:
        """Says this once in the report."""
        self.notes[text] = None


def is_programs_own(error: BaseException) -> bool:
    """Whether the program raised this while our code happened to run: in a signal handler of its, or from a thread.

    A time limit of a training loop does so: `signal.alarm` with a handler that raises.
    """
    trace, innermost = error.__traceback__, None
    while trace is not None:
        innermost = trace.tb_frame
        if _handles_a_signal(innermost):
            return True
        trace = trace.tb_next
    # PyThreadState_SetAsyncExc lets an exception begin in any frame. None of ours raises a class of somebody else's.
    strange = type(error).__module__.partition(".")[0] not in ("builtins", "torch", __name__.partition(".")[0])
    return strange and innermost is not None and is_ours(innermost.f_code.co_filename)


def _handles_a_signal(frame: FrameType) -> bool:
    """Whether Python called this function as a signal handler: such a one is given the frame that it interrupts."""
    below = frame.f_back
    given = frame.f_locals.values() if below is not None else ()
    return any(value is below or (type(value) is tuple and any(each is below for each in value)) for value in given)
