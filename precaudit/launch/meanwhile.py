"""While a traced command runs on: judges anew what its ranks have written, each time that they have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from precaudit.errors import PrecauditError
from precaudit.launch.collect import rank_files

EVERY = 1.0
"""Seconds between two looks."""


class Meanwhile:
    """Calls `renew` while it is entered, from a thread that ends with it; what that cannot do is left to the end."""

    def __init__(self, ranks: Path, renew: Callable[[], None]) -> None:
        self._ranks, self._renew = ranks, renew
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="precaudit-report", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        before: dict[str, int] = {}
        while not self._over.wait(EVERY):
            try:
                now = {path.name: path.stat().st_mtime_ns for path in rank_files(self._ranks)}
                if now != before:
                    before = now
                    self._renew()
            except (OSError, PrecauditError):
                pass  # a file that goes or cannot be written just now: the end of the run tells
