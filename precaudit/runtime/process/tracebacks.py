"""Takes our own frames out of the traceback of an exception that ends the program: the user sees the plain one.

Known limitations: a traceback that the script prints itself, from its own `except`, still shows the wrapped call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import TracebackType

from ..patching import Undo, patch
from ..sites import is_ours


class TracebackTap:
    """Stands in front of sys.excepthook."""

    def install(self) -> Iterable[Undo]:
        yield patch(sys, "excepthook", self._around)

    @staticmethod
    def _around(original: Callable[..., object]) -> Callable[..., object]:
        def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> object:
            seen: set[int] = set()
            link: BaseException | None = error
            while link is not None and id(link) not in seen:
                seen.add(id(link))
                link.__traceback__ = without_our_frames(link.__traceback__)
                link = link.__cause__ or link.__context__
            return original(kind, error, error.__traceback__)

        return excepthook


def without_our_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The same traceback, from which the frames of precaudit's own files were taken out."""
    frames = []
    while traceback is not None:
        if not is_ours(traceback.tb_frame.f_code.co_filename):
            frames.append(traceback)
        traceback = traceback.tb_next
    for one, following in zip(frames, [*frames[1:], None], strict=True):
        one.tb_next = following
    return frames[0] if frames else None
