"""One step in time: its phases as stretches, each cast, reduction and gradient norm as a mark."""

from __future__ import annotations

from precaudit.model.picture import Mark, Timeline
from precaudit.model.vocabulary import FLOATING
from precaudit.report import words
from precaudit.report.page.parts import e, section, table

KINDS = {"forward": "forward", "backward": "backward", "optimizer step": "step"}
"""Phase -> its class; every other is what lies between."""
MOST = 64
"""Stretches that are drawn; of more micro-batches the first."""


def timeline(found: Timeline | None, rank: int, ranks: int) -> str:
    """The step drawn, and the same in words; nothing where none was seen whole."""
    if found is None or not found.seconds or not found.phases:
        return ""
    shown = found.phases[:MOST]
    stretches = "".join(
        f'<span class="stretch {KINDS.get(phase.name, "between")}" style="left:{phase.start / found.seconds:.2%};'
        f'width:{(phase.end - phase.start) / found.seconds:.2%}" title="{e(phase.name)}"></span>'
        for phase in shown
    )
    marks = "".join(
        f'<span class="mark {_kind(mark)}" style="left:{mark.at / found.seconds:.2%}" '
        f'title="{e(_said(mark))}">{_sign(mark)}</span>'
        for mark in found.marks
    )
    phases: dict[str, tuple[int, float]] = {}
    for phase in found.phases:
        times, seconds = phases.get(phase.name, (0, 0.0))
        phases[phase.name] = times + 1, seconds + phase.end - phase.start
    key = "".join(
        f'<li><span class="swatch {KINDS.get(name, "between")}" aria-hidden=true></span>{e(name)}: '
        f"{words.duration(seconds)}{f' ({times} times)' if times > 1 else ''}</li>"
        for name, (times, seconds) in phases.items()
    )
    whose = f" of rank {rank}" if ranks > 1 else ""
    parts = [
        f"<p>Step {found.step}{whose}, {words.duration(found.seconds)} by the host's clock, with the trace's own work.",
        "</p><div class=timeline role=img aria-label='phases of the step; the list below says the same'>",
        f"{stretches}{marks}</div>",
        f"<ul class=key>{key}</ul>",
    ]
    if found.marks:
        parts.append(table("timeline-title", ("", "What", "During", "Times"), _counted(found), numbers=3))
    return section("timeline", "One step in time", parts)


def _kind(mark: Mark) -> str:
    """`down` and `up` of casts, by the digits of the mantissa."""
    if mark.what != "cast":
        return mark.what.replace(" ", "-") if mark.what in ("reduction", "gradient norm") else "other"
    return "down" if _digits(mark.target) < _digits(mark.source) else "up"


def _digits(dtype: str) -> int:
    facts = FLOATING.get(dtype)
    return facts.mantissa_bits if facts is not None else 0


def _sign(mark: Mark) -> str:
    return {"down": "▼", "up": "▲", "reduction": "◆", "gradient-norm": "●"}.get(_kind(mark), "·")


def _said(mark: Mark) -> str:
    """`cast float32 → bfloat16, 12 times`."""
    what = f"{mark.source} → {mark.target}" if mark.what == "cast" else mark.source
    return f"{mark.what} {what}{f', {mark.count} times' if mark.count > 1 else ''}"


def _counted(found: Timeline) -> list[tuple[str, str, str, str]]:
    """Marks of one kind and phase, together."""
    counts: dict[tuple[str, str, str], int] = {}
    for mark in found.marks:
        phase = next((phase.name for phase in found.phases if phase.start <= mark.at <= phase.end), "")
        what = _said(mark.model_copy(update={"count": 1}))
        counts[_sign(mark), what, phase] = counts.get((_sign(mark), what, phase), 0) + mark.count
    return [(*row, f"{count:,}") for row, count in sorted(counts.items(), key=lambda one: -one[1])]
