"""The exact step in words, for every format: what was off by how much, and the operations that lost most."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from precaudit.model.exact import ExactLine, ExactOperation, ExactStep
from precaudit.report import words
from precaudit.report.evidence import number, share

KINDS = {
    "loss": ("loss", "losses"),
    "log-probabilities": ("log-probabilities", "log-probabilities"),
    "logits": ("logits", "logits"),
    "activation": ("activation", "activations"),
    "before reduction": ("before reduction", "before reduction"),
    "gradient": ("gradient", "gradients"),
    "gradient norm": ("gradient norm", "gradient norms"),
    "update": ("update", "updates"),
    "state": ("optimizer state", "optimizer state"),
}
"""What a line of the budget is of: one of them, several of them."""
STAGES = ("gradient", "optimizer", "write-back")
"""Where an update is lost."""
MOST = 10
"""Parameters that a page shows."""
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
    if lines[0].what == "log-probabilities":
        return f"off by {number(max(line.absolute or 0.0 for line in lines))} nats on average"
    followed = (line for line in lines if line.error is not None and not line.partial)
    known = sorted(followed, key=lambda line: -(line.error or 0.0))
    said = []
    if len(known) == 1:
        said.append(f"off by {share(known[0].error or 0.0)}")
    elif known:
        said.append(f"off by {share(median(line.error or 0.0 for line in known))} in the median")
        said.append(f"worst {known[0].name or known[0].dtype} {share(known[0].error or 0.0)}")
    if parts := split(known):
        said.append(", ".join(f"{name} {share(value)}" for name, value in parts.items()))
    nil = sum(line.nil for line in lines)
    if nil:
        said.append(f"{nil} of rounding alone, where the exact gradient is zero")
    partial = sum(line.partial for line in lines)
    if partial:
        said.append(f"{partial} of {len(lines)} not followed all the way")
    return "; ".join(said)


def worst_updates(exact: ExactStep) -> list[ExactLine]:
    """The parameters whose updates are off most, worst first."""
    known = [line for line in exact.budget if line.what == "update" and line.error is not None]
    return sorted(known, key=lambda line: -(line.error or 0.0))[:MOST]


def part(line: ExactLine, stage: str) -> str:
    """What was lost in a stage; nothing where it is not known."""
    return share(line.split[stage]) if stage in line.split else ""


def split(lines: Sequence[ExactLine]) -> dict[str, float]:
    """Stage -> the median of what was lost there, in the order of the stages."""
    stages = dict.fromkeys(stage for line in lines for stage in line.split)
    return {stage: median(line.split.get(stage, 0.0) for line in lines if line.split) for stage in stages}


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
