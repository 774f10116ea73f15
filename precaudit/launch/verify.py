"""--verify-undisturbed: compares what two runs of one command recorded, one with the trace and one without."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from precaudit.disk import LARGEST_REPORT, read

Event = tuple[str, dict[str, str]]
"""What happened, "backward", "gradients" or "step", and the hash of each thing that was looked at."""
SYSTEM_SEEDED = frozenset({"random state of Python", "random state of numpy"})
"""Different in every run, unless the program seeds them; then their places in the sequence are what is compared."""
SHOWN = 3
"""Things that a sentence names; of the others it gives the number."""


@dataclass(frozen=True, slots=True)
class Records:
    """What one run recorded: of each process its events, in order, those of rank 0 first."""

    processes: Sequence[tuple[int, Sequence[Event]]] = ()

    def covers(self, other: Records) -> bool:
        """Whether this run has come as far as the other one, in every process."""
        mine, others = [len(events) for _, events in self.processes], [len(events) for _, events in other.processes]
        return len(mine) >= len(others) and all(a >= b for a, b in zip(mine, others, strict=False))

    def as_far_as(self, other: Records) -> Records:
        """Of this run what the other one came to: a run is ended a moment after it has come as far."""
        ends = [len(events) for _, events in other.processes]
        if len(ends) != len(self.processes):
            return self
        return Records([(rank, events[:end]) for (rank, events), end in zip(self.processes, ends, strict=True)])


@dataclass(slots=True)
class Compared:
    """What two runs have in common, and where they differ first."""

    same: Counter[str] = field(default_factory=Counter)
    """Kind of thing -> how often it was the same: "loss", "gradient"."""
    steps: int = 0
    unread: int = 0
    """Things that could be read in neither run."""
    difference: str = ""
    """Where they differ first, and in what; empty where they do not."""

    def __str__(self) -> str:
        if self.difference:
            return self.difference
        counts = ", ".join(f"{n} {_several(kind, n)}" for kind, n in self.same.items())
        unread = f"; {self.unread} could not be read" if self.unread else ""
        return f"{self.steps} optimizer step{'s' * (self.steps != 1)}: {counts}{unread}"


def read_records(folder: Path) -> Records:
    """What the processes of a run left in a folder; a last line that is not complete is left out."""
    found = []
    for path in sorted(folder.glob("record-*.jsonl")):
        events: list[Event] = []
        rank = 0
        with suppress(OSError, ValueError, KeyError, TypeError):
            for line in read(path, LARGEST_REPORT).decode("utf-8", "replace").splitlines():
                raw = json.loads(line)
                rank = int(raw["rank"])  # it is known from the process group on
                events.append((str(raw["event"]), dict(raw["rows"])))
        if events:
            found.append((rank, events))
    return Records(sorted(found, key=lambda one: one[0]))


def compare(traced: Records, plain: Records) -> Compared:
    """Compares event by event, as far as both runs went."""
    result = Compared()
    if len(traced.processes) != len(plain.processes):
        result.difference = (
            f"{len(traced.processes)} processes trained under the trace and {len(plain.processes)} without it"
        )
        return result
    several = len(traced.processes) > 1
    for (rank, mine), (_, theirs) in zip(traced.processes, plain.processes, strict=True):
        step = 1
        left_out = _left_to_the_system(mine, theirs)
        for (event, rows), (other, others) in zip(mine, theirs, strict=False):
            where = f"at optimizer step {step}" + (f" of rank {rank}" if several else "")
            if event != other:
                result.difference = result.difference or f"{where}: a {event} under the trace, a {other} without it"
                break
            _compare_rows(rows, others, left_out, where, result)
            step += event == "step"
        result.steps = max(result.steps, step - 1)
        if len(theirs) < len(mine) and not result.difference:
            result.difference = f"after optimizer step {step - 1}: the run goes on under the trace, and not without it"
    return result


def _left_to_the_system(mine: Sequence[Event], theirs: Sequence[Event]) -> set[str]:
    """The random states that differ where they are seen first: nobody seeded them."""
    first = [next((rows for event, rows in events if event == "step"), {}) for events in (mine, theirs)]
    return {name for name in SYSTEM_SEEDED if first[0].get(name) != first[1].get(name)}


def _compare_rows(
    mine: dict[str, str], others: dict[str, str], left_out: set[str], where: str, result: Compared
) -> None:
    differ = []
    for name in [name for name in mine if name in others and name not in left_out]:
        if mine[name] != others[name]:
            differ.append(name)
        elif mine[name] == "unread":
            result.unread += 1
        else:
            result.same[_kind(name)] += 1
    # A module that waits for the garbage collector may be seen in one run alone: its buffers tell nothing.
    differ += [name for name in (mine.keys() ^ others.keys()) - left_out if _kind(name) != "buffer"]
    if differ and not result.difference:
        differ.sort()
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        result.difference = f"first {where}: {', '.join(differ[:SHOWN])}{more}"


def _kind(name: str) -> str:
    """ "gradient of fc.weight" -> "gradient"."""
    words = name.split()
    if words[0] == "random":
        return "random state"
    return " ".join(words[:2]) if words[0] == "optimizer" else words[0]


def _several(kind: str, count: int) -> str:
    plural = {"loss": "losses", "optimizer state": "optimizer states"}
    return kind if count == 1 else plural.get(kind, f"{kind}s")


def says(traced: Records, plain: Records, again: Records | None) -> tuple[str, bool]:
    """The sentence for the user, and whether the trace changed what the program computes.

    `again` is a second run without the trace, which tells a program that never does the same twice.
    """
    if not traced.processes:
        return "not verified: no backward and no optimizer step was recorded", False
    compared = compare(traced, plain)
    if not compared.difference:
        return f"undisturbed: with and without the trace the same, bit for bit, in {compared}", False
    own = ""
    if again is not None:
        own = compare(again.as_far_as(traced), plain.as_far_as(traced)).difference
    if own:
        return (
            f"not verified: two runs without the trace differ from each other, {own}; seed what is random, "
            "and use torch.use_deterministic_algorithms",
            False,
        )
    return (
        f"disturbed: with and without the trace the run differs, {compared.difference}; "
        "this is a bug of precaudit: please report it",
        True,
    )
