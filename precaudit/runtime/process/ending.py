"""The end of a trace, and of the process as soon as no other rank needs it."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .. import torch_private as private
from ..events import BackwardBegan, Bus, TraceEnded, WindowClosed
from ..guard import Guard
from ..patching import Undo
from ..settings import Settings
from ..trackers.late import Late
from ..trackers.passes import Passes
from ..trackers.window import Window
from .ledger import Ledger
from .peers import Peers
from .rankfile import RankFile
from .tracebacks import TracebackTap


class Ending:
    """Closes the window, and stops the run unless it is to keep going."""

    def __init__(
        self,
        bus: Bus,
        guard: Guard,
        settings: Settings,
        window: Window,
        peers: Peers,
        ledger: Ledger,
        passes: Passes,
        late: Late,
        rank_file: RankFile,
    ) -> None:
        self._bus, self._guard, self._settings, self._window = bus, guard, settings, window
        self._peers, self._ledger, self._passes, self._rank_file = peers, ledger, passes, rank_file
        self._late = late
        self._alone_since = 0
        """The backward at which this rank met all its peers finished."""
        self._trainer = os.getpid()
        """The process that had the last backward: forks of it inherit everything but the training."""
        bus.on(BackwardBegan, self._backward_began, always=True)
        bus.on(WindowClosed, lambda event: self.close(), always=True)

    def install(self) -> Iterable[Undo]:
        atexit.register(self._at_exit)
        yield lambda: atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """The program ended before the window did: what was seen last is still written."""
        if os.getpid() == self._trainer:
            self._guard("the end of the program", self._passes.end)
            self._guard("the end of the program", self._ledger.settle)
            self._rank_file.write()

    def _backward_began(self, event: BackwardBegan) -> None:
        self._trainer = os.getpid()
        if self.peers_wait_in_vain():
            with self._guard.unseen():
                self.close()

    def peers_wait_in_vain(self) -> bool:
        """All peers have finished and this rank has gone on since for as many backwards as a window may have steps."""
        if self._settings.keep_going or self._window.clock % 4:
            return False
        if not self._peers.everybody_else_is_done():
            self._alone_since = 0
            return False
        self._alone_since = self._alone_since or self._window.clock
        return self._window.clock - self._alone_since >= self._settings.attempts

    def close(self) -> None:
        """The window is over: nothing more is traced, and the process stops as soon as no other rank needs it.

        Where the trace looks on, what it saw is written, and it goes on as it was.
        """
        if self._late.on:
            self._rank_file.window_over()
            if self._settings.keep_going:
                self._peers.window_over(False)
            return
        self._rank_file.freeze()
        self._rank_file.write()
        self._bus.tell(TraceEnded())
        between = private.graph_task_id() == -1
        if self._settings.keep_going:
            self._peers.window_over(False)
        elif self._peers.window_over(between):
            self._stop()
        else:
            # The process goes on until all can stop: its exceptions stay as they would be without us.
            private.patch_engine(self._around_last_backwards)
            TracebackTap().install()

    def _around_last_backwards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if private.graph_task_id() == -1 and self._peers.before_backward():
                self._stop()
            return original(t_outputs, *args, **kwargs)

        return _engine_run_backward

    def _stop(self) -> NoReturn:
        self._rank_file.stopped()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self._peers.last_words()
        try:
            # As Python's own end would: below a forkserver, DataLoader workers do not see that this process has gone.
            for child in multiprocessing.active_children():
                if child.daemon:
                    child.terminate()
        finally:
            # os._exit: no user `except`, `finally` or `atexit` may act on a model whose training was cut short.
            os._exit(0)
