"""Calls the roll of the ranks: which of them ended first, said nothing, came late, or are elsewhere."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from precaudit.launch.merge import Merged, ranks_in_words, spans_in_words
from precaudit.model.wire import PeerFile

LOOK = 0.1
"""Seconds between two looks for processes that have joined; an end is noticed at once."""


class Ends:
    """While the command runs: notes when each process that has joined a process group ends; waits for none of them.

    Without pidfd_open (not Linux) it notes nothing, and the processes' own last words have to do.
    """

    def __init__(self, folder: Path) -> None:
        self.at: dict[int, float] = {}
        """Process -> when it ended; several that were seen to end at once have the same time."""
        self.running: set[int] = set()
        """Processes that have not ended."""
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="precaudit-ends", daemon=True)

    def __enter__(self) -> Ends:
        if hasattr(os, "pidfd_open"):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        poll = select.poll()
        handles: dict[int, int] = {}
        changed = -1
        over = False
        while not over:
            over = self._over.is_set()  # one more look after the command has ended
            with contextlib.suppress(OSError):
                now = self._folder.stat().st_mtime_ns
                if now != changed:
                    changed = now
                    self._find(poll, handles)
            ended = poll.poll(0 if over else LOOK * 1000)
            moment = time.monotonic()
            for handle, _ in ended:
                poll.unregister(handle)
                os.close(handle)
                pid = handles.pop(handle)
                self.at[pid] = moment
                self.running.discard(pid)
        for handle in handles:
            os.close(handle)

    def _find(self, poll: select.poll, handles: dict[int, int]) -> None:
        for path in self._folder.glob("peer-*"):
            pid = int(path.name.removeprefix("peer-"))
            if pid in self.at or pid in self.running:
                continue
            try:
                handle = os.pidfd_open(pid)
            except OSError:  # it has ended already
                self.at[pid] = time.monotonic()
                continue
            self.running.add(pid)
            handles[handle] = pid
            poll.register(handle, select.POLLIN)


def call(merged: Merged, peers: Sequence[PeerFile], ends: Ends | None = None) -> list[str]:
    """One line for each thing a reader has to know about the ranks; none where all did what was asked of them."""
    running = ends.running if ends else set()
    known = [peer for peer in peers if peer.rank >= 0]
    late = sorted({p.rank for p in known if p.pid in running and p.state != "stopped"})
    joined = {p.rank for p in known}
    world = max([merged.world_size, *(p.world_size for p in known)])
    lines = []
    first = _ended_first([p for p in known if p.pid not in running], ends.at if ends else {})
    unfinished = sorted((merged.unfinished | {p.rank for p in first}) - set(late) - merged.without)
    if first:
        lines.append(_first_in_words(first, unfinished))
    elif unfinished and len(unfinished) < len(merged.ranks):
        lines.append(f"{ranks_in_words(unfinished)} ended before the traced steps were over")
    if merged.without:
        lines.append(
            f"the other ranks stopped without waiting for {ranks_in_words(sorted(merged.without))}, "
            "which had given no sign for a minute; errors there come from the stop"
        )
    if late:
        lines.append(f"{ranks_in_words(late)} {_was(late)} still running when the command had ended")
    silent = sorted(joined - merged.ranks - set(late) - {p.rank for p in first})
    if silent:
        lines.append(f"{ranks_in_words(silent)} of {world} joined the process group and ran no backward")
    if merged.preflight is not None and merged.preflight.ranks > 1:  # one rank of many, alone
        return lines
    return [*lines, *missing(merged.ranks | joined, world)]


def missing(seen: Iterable[int], world_size: int) -> list[str]:
    """The line that says which ranks were never heard of; none where all were, or none was."""
    heard = set(seen)
    ends = [-1, *sorted(rank for rank in heard if 0 <= rank < world_size), world_size]
    gaps = [(one + 1, other - 1) for one, other in pairwise(ends) if other - one > 1]
    if not gaps or not heard:
        return []
    absent = spans_in_words(gaps)
    return [f"{absent} of {world_size} wrote nothing here: on another node, or ended before joining"]


def _ended_first(ended: Iterable[PeerFile], at: Mapping[int, float]) -> list[PeerFile]:
    """The processes that were the first to end badly while their window was open; those that we stopped did not.

    Where nobody saw the order: those that left no word, for the others met an error because of them.
    """
    badly = [p for p in ended if not p.done and p.state != "stopped" and (p.state != "gone" or p.error)]
    if not badly:
        return []
    if all(p.pid in at for p in badly):
        moment = min(at[p.pid] for p in badly)
        return [p for p in badly if at[p.pid] == moment]
    return [p for p in badly if p.state != "gone"] or badly


def _first_in_words(first: Sequence[PeerFile], unfinished: Sequence[int]) -> str:
    ranks = sorted({p.rank for p in first})
    errors = sorted({p.error for p in first if p.error})
    how = f"with {errors[0]}" if errors else "without a word (killed, out of memory, or os._exit)"
    others = [rank for rank in unfinished if rank not in ranks]
    then = f"; {ranks_in_words(others)} ended after {'it' if len(ranks) == 1 else 'them'}" if others else ""
    order = " first" if others else ""
    return f"{ranks_in_words(ranks)} ended{order}, before the traced steps were over, {how}{then}"


def _was(ranks: Sequence[int]) -> str:
    return "was" if len(ranks) == 1 else "were"
