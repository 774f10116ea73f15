"""Replaces a method of torch or of a framework, so that it can be taken back without harm to what others replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the function that stands in for a given one."""
Undo = Callable[[], None]


def patch(owner: Any, name: str, wrap: Wrap) -> Undo:
    """Replaces a method by `wrap(method)`; the undo spares what others patched since."""
    own = name in vars(owner)
    original = getattr(owner, name)
    wrapped = functools.wraps(original)(wrap(original))
    setattr(owner, name, wrapped)

    def undo() -> None:
        if vars(owner).get(name) is wrapped:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    return undo


def put_in(install: Callable[[], Iterable[Undo]]) -> list[Undo]:
    """Puts in all pieces of a part; returns what takes each out. Where one fails, those before it come out again."""
    pieces: list[Undo] = []
    try:
        for undo in install():
            pieces.append(undo)
    except BaseException:
        for undo in reversed(pieces):
            undo()
        raise
    return pieces
