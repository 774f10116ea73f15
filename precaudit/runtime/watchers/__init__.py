"""What a dispatched op may mean, one watcher per question; the op probe asks those that registered for the op.

A watcher's `reactions` yields (phase, op names, reaction, low_only): with low_only the reaction runs only where the
result is in low precision, which keeps a clean float32 step fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ..trackers.window import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER

if TYPE_CHECKING:
    from ..session import Session

Reaction = Callable[[str, Any, Any, Any], None]
"""(op name, args, kwargs, result)."""
Registration = tuple[int, Iterable[str], Reaction, bool]


class Watcher(Protocol):
    def __init__(self, session: Session) -> None: ...

    def reactions(self) -> Iterable[Registration]: ...


def load() -> tuple[type[Watcher], ...]:
    """The watchers that nobody else needs to know, in the order they are asked."""
    from .constants import Constants
    from .normalisation import Normalisation
    from .positions import Positions
    from .ranges import Ranges
    from .regions import Regions
    from .softmax import Softmax

    return (Constants, Normalisation, Softmax, Positions, Ranges, Regions)


__all__ = ["BACKWARD", "FORWARD", "GRADIENTS", "OPTIMIZER", "Reaction", "Registration", "Watcher", "load"]
