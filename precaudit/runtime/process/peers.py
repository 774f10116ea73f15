"""Lets the ranks of one node stop together, by files and never by a collective.

**The problem.** A rank that ends while another one waits for it in a collective breaks that one: its error would be
our doing. So all ranks have to stop while none of them is inside a collective, although they finish their windows at
different moments, and may differ in how often they accumulate, step, or skip a step.

**Who.** Every process that calls `init_process_group` below one `precaudit trace` keeps a file `peer-<pid>` in the
folder of the rank files. Peers are those of one rendezvous whose process lives. No rank leaves its first collective
before all have joined, so that whoever trains together knows the others in time. A process without peers just stops.

**Boundaries.** A rank is asked where it never stands in a collective: at the entry of each root backward, and at the
end of the optimizer step that ended its window. Its *position* there is the number of collectives it has begun in each
process group. Every rank, traced or finished, writes "passed at this position" before it goes on from a boundary.

**The rule.** A finished rank parks at a boundary. While it is parked:
- all living peers are parked: it writes "stopping", looks again, and if that is still so, all stop.
- a peer has passed a boundary at this position or a later one: that peer will need it, so it writes "passed", looks
  again, and goes on if nobody is stopping. The two second looks exclude each other.
- a peer is at an earlier position: it comes this far without help, and is waited for.
That wait is in vain where the peer meets a collective on its way that this rank has not begun (a rank that never steps,
and sums up its loss): after `NUDGE` seconds without a sign from it the parked rank goes on, and does not wait for it
again until it gives one. A peer that gives no sign for `PATIENCE` seconds, or runs no backward so long, is given up:
the others stop without it, and their files say so. A rank still traced long after its peers finished closes its window.

Across nodes without a shared folder each node's ranks stop so, at the same step where all take the same steps; where
they do not, the node that stops first ends the run, and the launcher says so.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .. import torch_private as private

NUDGE = 5.0
"""Seconds a parked rank waits for a peer that gives no sign, before it goes on to the next boundary."""

PATIENCE = 60.0
"""Seconds without a sign after which a peer is no longer counted on."""

LAST_OUT = 1.0
"""Seconds the lowest rank waits for the others to end: it usually holds the store, or is the others' parent."""

POLL = 0.004
"""Seconds between two looks at the peers' files while parked."""

JOINING, RUNNING, PARKED, STOPPING, STOPPED, GONE = "joining", "running", "parked", "stopping", "stopped", "gone"

Position = Mapping[str, int]
"""Process group -> collectives begun in it; the root backwards alone where the backend does not count."""


@dataclass(slots=True)
class Peer:
    """One process as its file tells."""

    pid: int
    turn: int = 0
    """Rises with every word it writes."""
    state: str = JOINING
    rank: int = -1
    world_size: int = 0
    rendezvous: str = ""
    host: str = ""
    done: bool = False
    """Its window is over."""
    position: dict[str, int] = field(default_factory=dict)
    """Where it passed its last boundary, or is parked; empty before its first."""
    error: str = ""
    """The exception that ended it, once it is gone."""


def read(path: str) -> Peer | None:
    """What a peer's file says; None where it has gone or is being written just now."""
    for _ in range(3):
        try:
            with open(path, encoding="utf-8") as file:
                head, _, rest = file.read().partition(" ")
        except OSError:
            return None
        body, _, tail = rest.rstrip().rpartition(" ")
        if head == tail and head:
            with contextlib.suppress(ValueError, TypeError):
                return Peer(turn=int(head), **json.loads(body))
    return None


def lives(peer: Peer) -> bool:
    """Whether its process is there; of another machine that cannot be told, and it is taken to be."""
    if peer.host != host():
        return True
    try:
        with open(f"/proc/{peer.pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
    except OSError:
        return True
    try:
        os.kill(peer.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def host() -> str:
    """This machine's name; `socket.gethostname` says the same, at the cost of several ms of import in each process."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class Peers:
    """This process among those that train together with it."""

    def __init__(self, folder: str, position: Callable[[], Position] = private.collectives_begun) -> None:
        self.folder = folder
        self.me = Peer(os.getpid(), host=host())
        self.without: set[int] = set()
        """Ranks that were given up."""
        self._position = position
        self._file = -1
        self._length = 0
        self._backwards = 0
        self._looked_at: dict[int, tuple[int, float]] = {}
        """Peer -> its turn when it was last looked at, and since when that has been so."""
        self._in_vain: dict[int, int] = {}
        """Peer -> its turn, when it was waited for in vain."""

    # -- joining and leaving

    def join(self, rank: int = -1, world_size: int = 0, rendezvous: str = "") -> None:
        """Makes this process known: once before `init_process_group`, and once after it, with what that gave."""
        if not self.folder:
            return
        if self.me.pid != os.getpid():  # a fork of a process that had joined
            self.me = Peer(os.getpid(), host=self.me.host)
            self._file = -1
        if self._file < 0:
            try:
                self._file = os.open(
                    self._path(self.me.pid), os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600
                )
            except OSError:
                return
            atexit.register(self._at_exit)
        self.me.rank, self.me.world_size, self.me.rendezvous = rank, world_size, rendezvous
        self._say(JOINING if rank < 0 else RUNNING)

    def _at_exit(self) -> None:
        """The program ends by itself: the others need not wait, and the launcher can tell this from a kill."""
        if self._file < 0 or self.me.pid != os.getpid():
            return
        error = getattr(sys, "last_value", None)
        self.me.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}" if error else ""
        self._say(GONE)

    # -- what the session tells

    def before_backward(self) -> bool:
        """A root backward is about to begin. True: all ranks stop here."""
        if self._file < 0:
            return False
        if self.me.done:
            stop = self._park()
        else:
            self._pass()
            stop = False
        self._backwards += 1
        return stop

    def after_step(self) -> None:
        """An optimizer has stepped, and this rank's window is still open."""
        if self._file >= 0:
            self._pass()

    def window_over(self, between: bool) -> bool:
        """This rank has seen enough; `between` backwards it can park at once. True: all ranks stop here.

        A process without peers need not park: nobody waits for it, inside a backward either.
        """
        self.me.done = True
        if not self.others():
            self._say(RUNNING)
            return True
        if between:
            return self._park()
        self._say(RUNNING)
        return False

    def _pass(self) -> None:
        self.me.position = self._here()
        self._say(RUNNING)

    def _here(self) -> dict[str, int]:
        counts = dict(self._position())
        return counts if any(counts.values()) else {"root backwards": self._backwards}

    def everybody_else_is_done(self) -> bool:
        """Whether there are peers, and the windows of all of them are over."""
        others = self.others()
        return bool(others) and all(other.done for other in others)

    def others(self) -> list[Peer]:
        """The peers that live, in this process's world."""
        if self._file < 0:
            return []
        found = []
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        for name in names:
            if not name.startswith("peer-") or name == f"peer-{self.me.pid}":
                continue
            peer = read(os.path.join(self.folder, name))
            if peer is None or peer.rendezvous != self.me.rendezvous or peer.rank == self.me.rank:
                continue
            if peer.state != GONE and (peer.state in (STOPPING, STOPPED) or lives(peer)):
                found.append(peer)
        return found

    # -- a finished rank

    def _park(self) -> bool:
        """True: all ranks stop here. False: others need this one, and it goes on."""
        self.me.position = self._here()
        self._say(PARKED)
        since = time.monotonic()
        while True:
            others = self._counted_on()
            if all(other.state in (PARKED, STOPPING, STOPPED) for other in others):
                if self._agree(STOPPING, others, (PARKED, STOPPING, STOPPED)):
                    return True
            elif self._needed(others, time.monotonic() - since) and self._agree(RUNNING, others, None):
                return False
            time.sleep(POLL)

    def _agree(self, state: str, others: Iterable[Peer], states: tuple[str, ...] | None) -> bool:
        """Writes a decision, then looks again; takes it back where a peer has decided the opposite meanwhile."""
        self._say(state)
        counted = {other.pid for other in others}
        now = [other for other in self.others() if other.pid in counted]
        if states is None:
            agreed = not any(other.state in (STOPPING, STOPPED) for other in now)
        else:
            agreed = all(other.state in states for other in now)
        if not agreed:
            self._say(PARKED)
        return agreed

    def _needed(self, others: Iterable[Peer], waited: float) -> bool:
        """Whether a running peer cannot come to its own boundary without this rank's going on."""
        running = [other for other in others if other.state in (RUNNING, JOINING)]
        if any(self._has_passed(other) or self._in_vain.get(other.pid) == other.turn for other in running):
            return True
        now = time.monotonic()
        silent = [other for other in running if waited > NUDGE and now - self._looked_at[other.pid][1] > NUDGE]
        self._in_vain.update((other.pid, other.turn) for other in silent)
        return bool(silent)

    def _has_passed(self, other: Peer) -> bool:
        """Whether the peer went on from this rank's position or a later one. One that never trained may need it too."""
        shared = [group for group in other.position if group in self.me.position]
        return all(other.position[group] >= self.me.position[group] for group in shared)

    def _counted_on(self) -> list[Peer]:
        """The living peers, less those that have given no sign for too long."""
        now = time.monotonic()
        counted = []
        for other in self.others():
            turn, since = self._looked_at.get(other.pid, (-1, now))
            if turn != other.turn:
                self._looked_at[other.pid] = (other.turn, now)
                self.without.discard(other.rank)
            elif other.state in (RUNNING, JOINING) and now - since > PATIENCE:
                self.without.add(other.rank)
                continue
            counted.append(other)
        return counted

    def last_words(self) -> None:
        """Before the end: the lowest rank goes last, for the store is often in its process."""
        self._say(STOPPED)
        others = {other.pid for other in self.others() if other.state in (PARKED, STOPPING)}
        if self.me.rank == min([self.me.rank, *(o.rank for o in self.others() if o.rank not in self.without)]):
            deadline = time.monotonic() + LAST_OUT
            while others and time.monotonic() < deadline:
                time.sleep(POLL)
                others &= {other.pid for other in self.others() if other.state in (PARKED, STOPPING)}
            time.sleep(10 * POLL)
            # A FileStore takes its file away when its last process ends by itself; left there it hangs the next run.
            if os.path.isabs(self.me.rendezvous):
                with contextlib.suppress(OSError):
                    os.unlink(self.me.rendezvous)

    # -- the file

    def _path(self, pid: int) -> str:
        return os.path.join(self.folder, f"peer-{pid}")

    def _say(self, state: str) -> None:
        if self._file < 0:
            return
        me = self.me
        me.state = state
        me.turn += 1
        body = {name: getattr(me, name) for name in Peer.__slots__ if name != "turn"}
        line = f"{me.turn} {json.dumps(body)} {me.turn}".encode()
        # One write over the old words: a reader that meets half of it sees two different turns and reads again.
        padded = line.ljust(self._length - 1) + b"\n"
        self._length = max(self._length, len(padded))
        with contextlib.suppress(OSError):
            os.pwrite(self._file, padded, 0)
