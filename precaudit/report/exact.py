"""The exact step in words, for every format: what was off by how much, and the operations that lost most."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from precaudit.model.exact import ExactLine, ExactOperation, ExactStep
from precaudit.report import words
from precaudit.report.evidence import share

KINDS = {
    "loss": ("loss", "losses"),
    "gradient": ("gradient", "gradients"),
    "update": ("update", "updates"),
    "state": ("optimizer state", "optimizer state"),
}
"""What a line of the budget is of: one of them, several of them."""
RATHER = 10.0
"""A factor from which on it is said that an operation magnified the error of its inputs."""


class Summed(NamedTuple):
    """All lines of one kind in one."""

    label: str
    said: str


def heading(exact: ExactStep, ranks: int) -> str:
    """`step 2 beside itself in float64: 97.2 % of floating elements followed; not followed: foo 12 times`."""
    whose = f" of rank {exact.rank}" if ranks > 1 else ""
    said = f"step {exact.step}{whose} beside itself in float64: {share(exact.followed)} of floating elements followed"
    if exact.not_followed:
        named = [f"{name} {words.plural(times, 'time')}" for name, times in list(exact.not_followed.items())[:5]]
        more = len(exact.not_followed) - len(named)
        said += f"; not followed: {', '.join(named)}{f' and {more} more operations' if more else ''}"
    return said


def budget(exact: ExactStep) -> list[Summed]:
    """One line for each kind of quantity: the median of its errors, and the worst."""
    found = []
    for what, (one, several) in KINDS.items():
        lines = [line for line in exact.budget if line.what == what]
        if lines:
            found.append(Summed(several if len(lines) > 1 else one, _said(lines)))
    return found


def _said(lines: Sequence[ExactLine]) -> str:
    known = sorted((line for line in lines if line.error is not None), key=lambda line: -(line.error or 0.0))
    said = []
    if known:
        errors = [line.error or 0.0 for line in known]
        if len(known) == 1:
            said.append(f"off by {share(errors[0])}")
        else:
            said.append(f"off by {share(median(errors))} in the median")
            said.append(f"worst {known[0].name or known[0].dtype} {share(errors[0])}")
    nil = [line for line in lines if line.error is None and not line.partial]
    if nil:
        largest = max(nil, key=lambda line: line.absolute or 0.0)
        verb = "is" if len(nil) == 1 else "are"
        said.append(f"{len(nil)} {verb} exactly zero, and {largest.absolute or 0.0:.2g} at most here")
    partial = sum(line.partial for line in lines)
    if partial:
        said.append(f"{partial} of {len(lines)} not followed all the way")
    return "; ".join(said)


def operation(row: ExactOperation) -> str:
    """`pow (float32, forward, 3 times) in blocks.0.norm: its own rounding 0.17 %`."""
    times = f", {row.times:,} times" if row.times > 1 else ""
    where = f" in {row.module}" if row.module else ""
    head = f"{row.operation} ({row.dtype}, {row.phase}{times}){where}"
    if row.amplification is not None and row.amplification >= RATHER and row.local < row.added:
        return f"{head}: magnified the error of its inputs {row.amplification:.3g} times, to {share(row.error)}"
    return f"{head}: lost {share(row.local)} itself; its result is off by {share(row.error)}"


def place(row: ExactOperation) -> str:
    return f"{row.path}:{row.line}" if row.path else "no line of yours"
