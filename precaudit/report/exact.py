"""The exact step in words, for every format: what was off by how much, and the operations that lost most."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from precaudit.model.exact import ExactLine, ExactOperation, ExactScope, ExactStep
from precaudit.report import words
from precaudit.report.evidence import number, share

KINDS = {
    "loss": ("loss", "losses"),
    "log-probabilities": ("log-probabilities", "log-probabilities"),
    "logits": ("logits", "logits"),
    "activation": ("activation", "activations"),
    "phases": ("phases", "phases"),
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
"""Rows of a table that a terminal shows, without -v."""
SHOWN = 50
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
    if exact.scope is not None:
        said += f", {_only(exact.scope)}"
    if exact.not_followed:
        named = [f"{name} {words.plural(times, 'time')}" for name, times in list(exact.not_followed.items())[:5]]
        more = len(exact.not_followed) - len(named)
        said += f"; not followed: {', '.join(named)}{f' and {more} more operations' if more else ''}"
    return said


def _only(scope: ExactScope) -> str:
    """`only in blocks.3, head; 4 modules left out, for which 2.00 GB are too little`."""
    named = ", ".join(scope.modules[:5]) or "no module"
    more = f" and {len(scope.modules) - 5} more" if len(scope.modules) > 5 else ""
    left = words.plural(scope.left_out, "module")
    return f"{'only ' if scope.modules else ''}in {named}{more}" + (
        f"; {left} left out, {words.size(scope.limit)} being too little" if scope.left_out else ""
    )


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
    if lines[0].what == "phases":
        return f"off by up to {number(max(line.absolute or 0.0 for line in lines))} radians"
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
    """The parameters whose updates are off, worst first."""
    known = [line for line in exact.budget if line.what == "update" and line.error is not None]
    return sorted(known, key=lambda line: -(line.error or 0.0))


def update(line: ExactLine) -> str:
    """`norm.weight: off by 43 %; gradient 1 %, optimizer 40 %, write-back 39 %`."""
    lost = ", ".join(f"{name} {share(value)}" for name, value in line.split.items())
    return f"{line.name or line.dtype}: off by {share(line.error or 0.0)}{f'; {lost}' if lost else ''}"


class Table(NamedTuple):
    """Rows of words below their names."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def parameters(exact: ExactStep) -> Table:
    """The parameters whose updates are off most, and where that was lost."""
    gradients = {line.name: line for line in exact.budget if line.what == "gradient" and line.error is not None}
    head = (
        "Update of",
        "Off by",
        "Its gradient is off by",
        "By its gradient",
        "By the optimizer",
        "By the last rounding",
    )
    rows = [
        (
            line.name,
            share(line.error or 0.0),
            share(gradients[line.name].error or 0.0) if line.name in gradients else "",
            *(share(line.split[stage]) if stage in line.split else "" for stage in STAGES),
        )
        for line in worst_updates(exact)[:SHOWN]
    ]
    return Table(head, rows)


def operations(exact: ExactStep) -> Table:
    """The operations that lost most, with their three numbers."""
    head = ("Lost at", "Operation", "In", "Lost itself", "Its result is off by", "Times its inputs' error")
    rows = [
        (
            place(row),
            f"{row.operation} ({row.dtype}, {row.phase})",
            row.module,
            share(row.local),
            share(row.error),
            "" if row.amplification is None else f"{row.amplification:.3g}",
        )
        for row in exact.operations
    ]
    return Table(head, rows)


class Spread(NamedTuple):
    """How far one kind of quantity is off."""

    label: str
    middle: float
    worst: float


def spread(exact: ExactStep) -> list[Spread]:
    """For each kind whose errors are relative, their median and the worst."""
    found = []
    for what, (one, several) in KINDS.items():
        lines = [line for line in exact.budget if line.what == what]
        known = [line.error for line in lines if line.error is not None and not line.partial]
        if known:
            found.append(Spread(several if len(lines) > 1 else one, median(known), max(known)))
    return found


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
