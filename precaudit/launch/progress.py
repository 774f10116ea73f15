"""One line at the bottom of a terminal while a traced command runs: how far the trace is; it leaves nothing behind.

The command writes to the same terminal. So the last row is taken out of what scrolls, as apt does it: whatever the
command prints, a tqdm bar as well, stays above it, and at the end the row is cleared and given back.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from precaudit import disk
from precaudit.launch.collect import rank_files

EVERY = 0.25
"""Seconds between two looks."""
FIRST = 0.5
"""Seconds until the line is first drawn: what is over by then needs none."""
FEWEST_ROWS, FEWEST_COLUMNS = 6, 40


def can_show(stream: Any, environment: Mapping[str, str]) -> bool:
    """Whether this stream is a terminal that knows how to move its cursor, and this process may draw on it."""
    return os.name == "posix" and stream.isatty() and environment.get("TERM", "dumb") != "dumb"


class Progress:
    """Draws while it is entered, from a thread of its own."""

    def __init__(self, terminal: int, folder: Path, ranks: Path, skip: int, steps: int, goes_on: bool) -> None:
        self._terminal, self._folder, self._ranks = terminal, folder, ranks
        self._skip, self._last, self._goes_on = skip, skip + steps, goes_on
        self._began = time.monotonic()
        self._rows = 0
        """Of the terminal whose last row is ours; 0 while none is."""
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="precaudit-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _draw(self) -> None:
        try:
            wait = FIRST
            while not self._over.wait(wait):
                wait = EVERY
                said = self.says()
                if not said:
                    break
                self._show(said)
        except (OSError, ValueError):
            pass  # the terminal has gone
        finally:
            self._give_back()

    # -- what there is to say

    def says(self) -> str:
        """`tracing step 2 of 3`; nothing once a command that is to run on does so untraced."""
        files = [self._content(path) for path in rank_files(self._ranks)]
        seen = [one for one in files if one]
        if not seen:
            loaded = any(self._folder.glob("torch-*"))
            return f"{'torch is loaded, no step yet' if loaded else 'starting'}{self._since()}"
        if all(one["status"] != "watching" for one in seen):
            return "" if self._goes_on else "writing the report"
        first = min(seen, key=lambda one: (one["steps"], one["coverage"].get("attempts", 0)))
        taken = first["coverage"].get("attempts", 0)
        if not taken:
            return f"first backward seen, no step yet{self._since()}"
        if taken < self._skip:
            return f"step {taken} seen, tracing from step {self._skip + 1} on{self._since()}"
        number = min(self._skip + first["steps"] + 1, self._last)
        return f"tracing step {number} of {self._last}{self._since()}"

    def _since(self) -> str:
        return f" ({time.monotonic() - self._began:.0f} s)"

    def _content(self, path: Path) -> dict[str, Any]:
        """What a rank file says now; read again only when it has changed."""
        try:
            stamp = path.stat().st_mtime_ns
            if self._read.get(path.name, (0, {}))[0] != stamp:
                content = json.loads(disk.read(path, disk.LARGEST_REPORT))
                assert {"status", "steps", "coverage"} <= content.keys()
                self._read[path.name] = stamp, content
        except (OSError, ValueError, AssertionError, AttributeError):
            pass  # it is being written, or has gone: what it said last stands
        return self._read.get(path.name, (0, {}))[1]

    # -- the terminal

    def _show(self, text: str) -> None:
        if os.tcgetpgrp(self._terminal) != os.getpgrp():  # in the background it is another's
            return
        size = os.get_terminal_size(self._terminal)
        if size.lines < FEWEST_ROWS or size.columns < FEWEST_COLUMNS:
            self._give_back()
            return
        if size.lines != self._rows:
            self._give_back()
            # Down and up again: should the cursor be on the last row, what is there moves up, and its column stays.
            self._write(f"\x1bD\x1b[1A\x1b7\x1b[1;{size.lines - 1}r\x1b8")
            self._rows = size.lines
        line = f"precaudit: {text}"[: size.columns - 1]
        self._write(f"\x1b7\x1b[{self._rows};1H\x1b[2K\x1b[2m{line}\x1b[0m\x1b8")

    def _give_back(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, 0
            with contextlib.suppress(OSError):  # the terminal may have gone
                self._write(f"\x1b7\x1b[r\x1b[{rows};1H\x1b[2K\x1b8")

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())
