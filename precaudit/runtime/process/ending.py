"""The end of a trace, and of the process as soon as no other rank needs it."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from .. import torch_private as private
from ..events import BackwardBegan, GoesOn, GroupBegan, GroupJoined, WindowClosed
from ..taps.tracebacks import TracebackTap

if TYPE_CHECKING:
    from ..session import Session


class Ending:
    """Closes the window of a session, and stops the run unless it is to keep going."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._alone_since = 0
        """The backward at which this rank met all its peers finished."""
        self._trainer = os.getpid()
        """The process that had the last backward: forks of it inherit everything but the training."""
        session.bus.on(BackwardBegan, self._backward_began, always=True)
        session.bus.on(WindowClosed, lambda event: self.close(), always=True)
        session.bus.on(GroupBegan, lambda event: self.session.peers.join(), always=True)
        session.bus.on(GroupJoined, lambda event: self.session.peers.join(*event), always=True)
        session.bus.on(GoesOn, lambda event: self.session.peers.after_step(), always=True)

    def install(self) -> list[Callable[[], None]]:
        atexit.register(self._at_exit)
        return [lambda: atexit.unregister(self._at_exit)]

    def _at_exit(self) -> None:
        """The program ended before the window did: what was seen last is still written."""
        if os.getpid() == self._trainer:
            self.session.guard("the end of the program", self.session.passes.end)
            self.session.guard("the end of the program", self.session.ledger.settle)
            self.session.rank_file.write()

    def _backward_began(self, event: BackwardBegan) -> None:
        self._trainer = os.getpid()
        self.session.peers.before_backward()
        if self.peers_wait_in_vain():
            with self.session.guard.unseen():
                self.close()

    def peers_wait_in_vain(self) -> bool:
        """All peers have finished and this rank has gone on since for as many backwards as a window may have steps."""
        if self.session.settings.keep_going or self.session.window.clock % 4:
            return False
        if not self.session.peers.everybody_else_is_done():
            self._alone_since = 0
            return False
        self._alone_since = self._alone_since or self.session.window.clock
        return self.session.window.clock - self._alone_since >= self.session.settings.attempts

    def close(self) -> None:
        """The window is over: nothing more is traced, and the process stops as soon as no other rank needs it."""
        self.session.status = "finished"
        self.session.rank_file.freeze()
        self.session.rank_file.write()
        self.session.remove()
        between = private.graph_task_id() == -1
        if self.session.settings.keep_going:
            self.session.peers.window_over(False)
        elif self.session.peers.window_over(between):
            self._stop()
        else:
            # The process goes on until all can stop: its exceptions stay as they would be without us.
            private.patch_engine(self._around_last_backwards)
            TracebackTap().install()

    def _around_last_backwards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if private.graph_task_id() == -1 and self.session.peers.before_backward():
                self._stop()
            return original(t_outputs, *args, **kwargs)

        return _engine_run_backward

    def _stop(self) -> NoReturn:
        self.session.status = "stopped"
        self.session.rank_file.stopped()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.session.peers.last_words()
        try:
            # As Python's own end would: below a forkserver, DataLoader workers do not see that this process has gone.
            for child in multiprocessing.active_children():
                if child.daemon:
                    child.terminate()
        finally:
            # os._exit: no user `except`, `finally` or `atexit` may act on a model whose training was cut short.
            os._exit(0)
