"""What `precaudit whatif` measured, in words for every format: loss and gradients by format, layers, roles."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from precaudit.model.exact import Effect, RoleRow, WhatIf
from precaudit.report import words
from precaudit.report.evidence import share

STANDS_OUT = 2.0
"""A layer stays high whose rounding alone moves the gradients so many times as much as the median layer's."""
SMALL, FLUSHED = 0.01, 0.001
"""A role could be lower where rounding changes no more of it, and of what a step adds to it, and flushes no more."""
MOST = 5
"""Layers that are named."""


class Said(NamedTuple):
    """One line of the report."""

    label: str
    text: str


def heading(found: WhatIf, step: int) -> str:
    """`step 2 beside itself with the operands of all matmuls rounded, to nearest`."""
    how = "at random" if found.stochastic else "to nearest"
    return f"step {step} beside itself with the operands of all matmuls rounded, {how}"


def lines(found: WhatIf, everything: bool = False) -> Iterator[Said]:
    """A line for each format, one for the layers, one for the roles; with `everything` all layers and roles."""
    for effect in found.formats:
        yield Said(effect.format, _effect(found, effect))
    if found.layers:
        yield Said("layers", _layers(found, everything))
    low = could_be_low(found)
    if low:
        shown = low if everything else low[:MOST]
        more = f" and {len(low) - len(shown)} more" if len(low) > len(shown) else ""
        yield Said("could be low", "; ".join(_role(row) for row in shown) + more)
    elif found.roles:
        yield Said("could be low", "nothing that this step holds in float32")


def _effect(found: WhatIf, effect: Effect) -> str:
    rows = [row for row in found.matmuls if row.format == effect.format]
    said = f"loss off by {_off(effect.loss)}, gradients by {_off(effect.gradients)}"
    if not rows:
        return f"{said}; no matmul was met"
    times = sum(row.times for row in rows)
    flushed, saturated = (sum(one * row.times for one, row in zip(part, rows, strict=True)) / times for part in (
        [row.flushed for row in rows], [row.saturated for row in rows]))  # fmt: skip
    errors = [row.error for row in rows]
    worst = None if None in errors else max(error for error in errors if error is not None)
    said += f"; operands by up to {_off(worst)}"
    if flushed:
        said += f", {share(flushed)} become zero"
    if saturated:
        said += f", {share(saturated)} saturate"
    return said


def _layers(found: WhatIf, everything: bool) -> str:
    """`float8_e4m3 in one layer alone moves the gradients by: head 2.9 %, up 1.6 %; keep high: head`."""
    shown = found.layers if everything else found.layers[:MOST]
    listed = ", ".join(f"{effect.layer} {_off(effect.gradients)}" for effect in shown)
    rest = len(found.layers) - len(shown)
    more = f" and {rest} more, which move them less" if rest else ""
    left = f"; {words.plural(found.left_out, 'layer')} not tried alone" if found.left_out else ""
    high = ", ".join(str(effect.layer) for effect in stays_high(found))
    keep = f"; keep high: {high}" if high else "; none stands out"
    return f"{found.layers[0].format} in one alone moves the gradients by: {listed}{more}{left}{keep}"


def stays_high(found: WhatIf) -> list[Effect]:
    """The layers that move the gradients far more than others do, worst first."""
    known = [effect.gradients for effect in found.layers if effect.gradients is not None]
    usual = median(known) if known else 0.0
    return [e for e in found.layers if e.gradients is None or e.gradients > STANDS_OUT * usual]


def could_be_low(found: WhatIf) -> list[RoleRow]:
    """For each float32 role the smallest format that costs it nothing measurable; the largest saving first."""
    best: dict[str, RoleRow] = {}
    for row in found.roles:
        small = row.error is not None and row.error <= SMALL and row.flushed <= FLUSHED
        if row.dtype != "float32" or not small or (row.of_the_step is not None and row.of_the_step > SMALL):
            continue
        if row.saves and (row.role not in best or _better(row) > _better(best[row.role])):
            best[row.role] = row
    return sorted(best.values(), key=lambda row: -row.saves)


def _better(row: RoleRow) -> tuple[float, ...]:
    """Of two formats of one size the one that flushes nothing."""
    return row.saves, -row.flushed, -(row.error or 0.0)


def _role(row: RoleRow) -> str:
    name = row.role.replace("_", " ", 1)
    return f"{name} in {row.format} (off by {_off(row.error)}) would save {words.size(row.saves)}"


def _off(value: float | None) -> str:
    return "more than can be said: not finite" if value is None else share(value)
