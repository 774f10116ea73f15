"""Runs the user's command to its end: the terminal and the signals are the command's, the waiting is ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from precaudit.disk import read
from precaudit.errors import UsageError

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL, when --timeout has passed."""

LOOK = 0.2
"""Seconds between two questions whether the command has run far enough."""

FORWARDED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended."""

    code: int
    """Its exit code as a shell shows it: 128 + n for signal n."""
    timed_out: bool
    seconds: float

    @property
    def how(self) -> str:
        """For a sentence: "ended with exit code 7", "was ended by SIGKILL"."""
        if self.code > 128:
            try:
                return f"was ended by {signal.Signals(self.code - 128).name} (exit code {self.code})"
            except ValueError:
                pass
        return f"ended with exit code {self.code}"


def run_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    timeout: float | None = None,
    until: Callable[[], bool] | None = None,
) -> Ended:
    """Starts the command on our own stdin, stdout and stderr, and waits for it, not for what it leaves behind.

    Ctrl-C goes to the command alone (the terminal sends it to both); SIGTERM and SIGHUP are passed on to it.
    After `timeout` seconds, or once `until` says so, the command and its descendants get SIGTERM, and SIGKILL after a
    grace of 5 s.
    """
    began = time.monotonic()
    children: list[subprocess.Popen[bytes]] = []
    timed_out = False
    with _signals_for(children):
        try:
            child = subprocess.Popen(list(argv), env=dict(environment))
        except OSError as error:
            raise UsageError(f"{argv[0]}: cannot be started: {error.strerror}") from None
        children.append(child)
        try:
            code = child.wait(timeout) if until is None else _wait(child, timeout, until)
        except subprocess.TimeoutExpired:
            timed_out = True
            code = _end(child)
    return Ended(code if code >= 0 else 128 - code, timed_out, time.monotonic() - began)


@contextlib.contextmanager
def _signals_for(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    # Handlers, not SIG_IGN: an ignored signal stays ignored across exec, a handler does not.
    def stay(number: int, frame: FrameType | None) -> None:
        pass

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    before = {}
    for number in (signal.SIGINT, *FORWARDED):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` stays in force for the command too
            before[number] = signal.signal(number, stay if number is signal.SIGINT else forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(child: subprocess.Popen[bytes], timeout: float | None, until: Callable[[], bool]) -> int:
    """Waits for the end, or ends it when `until` says so. Raises TimeoutExpired."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK if deadline is None else min(LOOK, max(0.0, deadline - time.monotonic()))
        try:
            return child.wait(left)
        except subprocess.TimeoutExpired:
            if deadline is not None and time.monotonic() >= deadline:
                raise
        if until():
            return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Ends a command that ran out of time, with its descendants: bash does not pass SIGTERM on to what it runs."""
    family = [child.pid, *descendants(child.pid)]
    _send(family, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        code = child.poll()
        if code is not None and not any(_alive(pid) for pid in family[1:]):
            return code
        time.sleep(0.05)
    _send([pid for pid in {*family[1:], *descendants(child.pid)} if _alive(pid)], signal.SIGKILL)
    child.kill()
    return child.wait()


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _stat(pid: int) -> list[str]:
    """State, parent, … of a process from /proc; empty where it has gone."""
    try:
        text = read(f"/proc/{pid}/stat").decode("utf-8", "replace")
    except OSError:
        return []
    # The command name in parentheses may hold spaces; what follows the last one does not.
    return text.rpartition(")")[2].split()


def descendants(pid: int) -> list[int]:
    """The processes below this one, where the system has /proc; else none."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if len(fields) > 1:
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    below, open_ends = [], [pid]
    while open_ends:
        found = parents.get(open_ends.pop(), [])
        below += found
        open_ends += found
    return below
