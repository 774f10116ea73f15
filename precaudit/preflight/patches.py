"""One stack of undo: every change to an object of somebody else's, taken back in reverse order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

_MISSING = object()


class Patches:
    """What a preflight has changed so far. `close` puts all of it back."""

    def __init__(self) -> None:
        self.undo = contextlib.ExitStack()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets `owner.name`, or makes it: `set(torch.cuda, "is_available", lambda: True)`."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)

        def put_back() -> None:
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self.undo.callback(put_back)

    def wrap(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replaces `owner.name` by `make(owner.name)`, which keeps its name and docstring."""
        original = getattr(owner, name)
        self.set(owner, name, functools.wraps(original)(make(original)))

    def enter(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        """Enters a context that is left with the others."""
        return self.undo.enter_context(context)

    def close(self) -> None:
        """Puts everything back as it was found."""
        self.undo.close()
