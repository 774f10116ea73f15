"""Tells the peers of this process where it is: which group it joined, each backward, each step."""

from __future__ import annotations

from ..events import BackwardBegan, Bus, GoesOn, GroupBegan, GroupJoined
from ..settings import Settings
from .peers import Peers


class Ranks:
    """Made before all who may end the trace: a backward counts for the peers even where it is the one that does."""

    def __init__(self, bus: Bus, peers: Peers, settings: Settings) -> None:
        self._peers = peers
        bus.on(GroupBegan, lambda event: peers.join(), always=True)
        bus.on(GroupJoined, lambda event: peers.join(*event), always=True)
        if not settings.keep_going:  # else nobody is stopped, and nobody need know where the others are
            bus.on(BackwardBegan, self._backward_began, always=True)
            bus.on(GoesOn, lambda event: peers.after_step(), always=True)

    def _backward_began(self, event: BackwardBegan) -> None:
        self._peers.before_backward()
