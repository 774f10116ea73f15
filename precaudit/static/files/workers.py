"""Examines files in processes that may die: each has its share of time and memory, and the others go on.

A parser written in C or Rust can run out of stack, and no Python catches that: the process is gone. Its file is told
by name, and a new process takes what was left.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """What one file may take."""

    seconds: int = 10
    """Of CPU time."""
    megabytes: int = 512
    """Beyond what the process has taken before."""


GRACE = 3
"""CPU seconds after which a process that does not answer is ended by the system."""
Work = Callable[[int], Any]
Failed = Callable[[str], Any]


class TooLong(BaseException):
    """A file took more than its CPU time; nothing that catches exceptions of a parser catches it."""


class _Worker(NamedTuple):
    pid: int
    pipe: int
    numbers: list[int]
    """Its files, in order."""


def each(shares: Sequence[Sequence[int]], work: Work, failed: Failed, limits: Limits) -> dict[int, Any]:
    """`work(number)` for each number of each share, a process for each share; `failed(why)` where one cannot be had."""
    results: dict[int, Any] = {}
    waiting = [list(share) for share in shares if share]
    workers: dict[int, tuple[_Worker, bytearray]] = {}
    for numbers in waiting:
        worker = _start(numbers, work, failed, limits)
        workers[worker.pipe] = worker, bytearray()
    while workers:
        ready, _, _ = select.select(list(workers), [], [])
        for pipe in ready:
            worker, held = workers[pipe]
            more = os.read(pipe, 1 << 20)
            held += more
            for number, result in _messages(held):
                results[number] = result
            if more:
                continue
            os.close(pipe)
            del workers[pipe]
            why = _how_it_ended(os.waitpid(worker.pid, 0)[1], limits)
            left = [number for number in worker.numbers if number not in results]
            if left:
                results[left[0]] = failed(why)
            if left[1:]:
                again = _start(left[1:], work, failed, limits)
                workers[again.pipe] = again, bytearray()
    return results


def _start(numbers: list[int], work: Work, failed: Failed, limits: Limits) -> _Worker:
    here, there = os.pipe()
    pid = os.fork()
    if pid:
        os.close(there)
        return _Worker(pid, here, numbers)
    code = 1
    try:
        os.close(here)
        signal.signal(signal.SIGPROF, _too_long)
        for number in numbers:
            _send(there, (number, _limited(number, work, failed, limits)))
        code = 0
    finally:
        os._exit(code)


def _limited(number: int, work: Work, failed: Failed, limits: Limits) -> Any:
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_least(spent + limits.seconds + GRACE, most), most))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_least(_size() + limits.megabytes * 1_000_000, most), most))
    try:
        signal.setitimer(signal.ITIMER_PROF, limits.seconds, 0.5)
        try:
            return work(number)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TooLong:
        return failed(_slow(limits))
    except MemoryError:
        return failed(_large(limits))


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


def _size() -> int:
    """Bytes of address space that this process has; 0 where the system does not tell."""
    from precaudit.disk import read

    try:
        return int(read("/proc/self/statm").split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 1 << 40


def _least(wanted: int, most: int) -> int:
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def _send(pipe: int, message: tuple[int, Any]) -> None:
    body = pickle.dumps(message)
    whole = memoryview(len(body).to_bytes(8, "little") + body)
    while whole:
        whole = whole[os.write(pipe, whole) :]


def _messages(held: bytearray) -> Iterator[tuple[int, Any]]:
    """The messages that are whole; what follows them stays."""
    while len(held) >= 8:
        length = int.from_bytes(held[:8], "little")
        if len(held) < 8 + length:
            return
        yield pickle.loads(held[8 : 8 + length])
        del held[: 8 + length]


def _slow(limits: Limits) -> str:
    return f"takes more than {limits.seconds} s to follow; exclude it, or allow more with --file-seconds"


def _large(limits: Limits) -> str:
    return f"takes more than {limits.megabytes} MB of memory to follow; exclude it, or allow more with --file-memory"


def _how_it_ended(status: int, limits: Limits) -> str:
    if not os.WIFSIGNALED(status):
        return _large(limits)
    number = os.WTERMSIG(status)
    if number in (signal.SIGXCPU, signal.SIGPROF):
        return _slow(limits)
    if number == signal.SIGABRT:  # what Rust does where it gets no memory
        return _large(limits)
    return f"its parser died of it ({signal.Signals(number).name}); exclude it"
