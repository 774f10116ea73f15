"""Which run a report is of: the command, when and where, what was installed, the commit, and what had changed since."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from precaudit import git
from precaudit.model.wire import Run

PATIENCE = 3.0
"""Seconds that git may take; of a repository where it takes longer nothing is said."""


@dataclass(frozen=True, slots=True)
class Program:
    """What the traced process itself told of what it ran on and what it trained."""

    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""
    model: str = ""
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A run that has begun; `ended` makes its identity."""

    id: str
    argv: Sequence[str]
    cwd: str
    commit: str
    dirty: bool | None
    clock: float
    at: datetime

    def ended(self, program: Program | None = None) -> Run:
        """The identity, once it is over; without a program it is a run of our own."""
        seen = program or Program()
        return Run(
            id=self.id,
            argv=list(self.argv),
            cwd=self.cwd,
            started=self.at.isoformat(timespec="milliseconds"),
            duration_s=round(time.monotonic() - self.clock, 3),
            host=platform.node(),
            python=seen.python or platform.python_version(),
            versions=dict(seen.versions),
            gpu=seen.gpu,
            model=seen.model,
            parameters=seen.parameters,
            commit=self.commit,
            dirty=self.dirty,
        )


def begin(argv: Sequence[str] | None = None, cwd: str | None = None, began: float | None = None) -> Started:
    """Notes what is to be known before the run: the time (`began` where it is past), the state of the repository."""
    folder = cwd or os.getcwd()
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    now = time.time()
    at = datetime.fromtimestamp(now if began is None else began, timezone.utc)
    clock = time.monotonic() - (0.0 if began is None else now - began)
    dirty = None if changes is None else bool(changes)
    return Started(uuid.uuid4().hex, sys.argv if argv is None else argv, folder, commit or "", dirty, clock, at)


def _git(folder: str, *words: str) -> str | None:
    """What git answers, without taking its locks; None where it does not."""
    try:
        done = subprocess.run(
            git.command(folder, *words),
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def strangers(names: Sequence[str], runs: Sequence[Run | None], ranks: Sequence[tuple[Sequence[int], int]]) -> str:
    """Why these reports are not of the nodes of one run; empty where they may be. `ranks` is (ids, world size) of each.

    Nodes of one run have different ranks of one world, and run at the same time.
    """
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            why = _apart(runs[one], runs[other]) or _same_place(ranks[one], ranks[other])
            if why:
                return f"{names[one]} and {names[other]} are two runs, not two nodes of one: {why}"
    return ""


def _same_place(one: tuple[Sequence[int], int], other: tuple[Sequence[int], int]) -> str:
    shared = sorted(set(one[0]) & set(other[0]))
    if shared:
        return f"both hold rank {shared[0]}"
    if one[1] and other[1] and one[1] != other[1]:
        return f"they had {one[1]} and {other[1]} ranks"
    return ""


def _apart(one: Run | None, other: Run | None) -> str:
    if one is None or other is None:
        return ""
    spans = []
    for run in (one, other):
        try:
            begun = datetime.fromisoformat(run.started).timestamp()
        except ValueError:
            return ""
        spans.append((begun, begun + run.duration_s))
    (first, first_end), (second, second_end) = spans
    # Clocks of two hosts may differ by as much.
    if first_end + 300 < second or second_end + 300 < first:
        return f"one began at {one.started}, the other at {other.started}, and they never ran at once"
    return ""
