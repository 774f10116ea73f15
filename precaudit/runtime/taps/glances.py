"""Sees now and then what a program does with its weights between two steps: an average that begins, weights merged.

A mode is in from the end of a step to the next backward, of so few steps that it costs half a percent of the time.

Known limitations: none where something is compiled, which would be compiled once more; what happens in fewer than
all steps, as an average that is updated at every tenth, may be missed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .. import torch_private as private
from ..events import BackwardBegan, Bus, GlanceBegan, Glanced
from ..modes import Modes, OurMode
from ..operands import in_graph, tensors_of
from ..patching import Undo
from . import Tap

ELEMENTWISE = frozenset(
    "add add_ sub sub_ mul mul_ lerp lerp_ addcmul addcmul_ copy_ clone _to_copy _foreach_add _foreach_add_ "
    "_foreach_mul _foreach_mul_ _foreach_lerp _foreach_lerp_ _foreach_copy_ _foreach_sub _foreach_sub_".split()
)
"""What averages, copies and merges of weights are made of; a forward pass reads them otherwise."""
MOST = 5_000
"""Operations of one glance."""


class GlanceMode(OurMode):
    """Notes the elementwise operations outside of any graph that read or write one of the storages it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: frozenset[int] = frozenset()
        self.seen: set[tuple[str, bool]] = set()
        """(op, whether it writes to a weight)"""
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind not in private.PLAIN and not private.is_plain(kind):
                return func(*args, **(kwargs or {})) if private.simulates(kind) else NotImplemented
        self.ops += 1
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else ""
        if name in ELEMENTWISE and self.ops < MOST and not in_graph(args):
            self._note(name, args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        for position, tensor in enumerate(tensors_of(args[:1]) + tensors_of(args[1:])):
            if private.storage_key(tensor) in self.storages:
                written = name.endswith("_") and position < len(tensors_of(args[:1]))
                self.seen.add((name, written))
                return


class GlanceTap(Tap):
    """Puts the mode in when it is asked to, and takes it out at the next backward."""

    def __init__(self, bus: Bus, modes: Modes) -> None:
        self._bus, self._modes = bus, modes
        self._mode = GlanceMode()
        self._since = 0.0
        bus.on(GlanceBegan, self._begin, always=True)
        bus.on(BackwardBegan, lambda event: self._end(), always=True)

    def install(self) -> Iterable[Undo]:
        yield self._take_out

    def _begin(self, event: GlanceBegan) -> None:
        if not self._since:
            self._since = time.perf_counter()
            self._mode.storages, self._mode.ops = event.storages, 0
            self._mode.seen.clear()
            self._modes.put_in(self._mode)

    def _end(self) -> None:
        if self._since:
            self._take_out()
            self._bus.tell(Glanced(frozenset(self._mode.seen), self._mode.ops))

    def _take_out(self) -> None:
        if self._since:
            self._since = 0.0
            self._modes.take_out(self._mode)
