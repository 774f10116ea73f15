"""How large values are, over the ranges of low-precision formats: a small histogram for each kind, and its shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from precaudit.model.picture import Histogram, Picture
from precaudit.model.vocabulary import FLOATING
from precaudit.report.evidence import share
from precaudit.report.page.parts import chip, e, section

FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
KINDS = ("weights", "gradients", "updates", "activations")
"""In this order; optimizer state comes before activations."""
LEFT, RIGHT, TOP, PLOT, BAND = 92, 340, 8, 84, 13
"""Of a drawing: where the plot begins and ends, and how high its parts are."""
FARTHEST = -64
"""Smaller exponents are drawn together with this one."""
MOST = 24
"""Drawings."""


class Range(NamedTuple):
    """Where a format ends, as exponents of two."""

    name: str
    zero: int
    """What is smaller becomes zero."""
    normal: int
    """From here on a number has all its digits."""
    end: int
    """From here on there is no finite number."""


def range_of(name: str) -> Range:
    """The ends of a format; half of its smallest number still rounds up to it."""
    facts = FLOATING[name]
    smallest = round(math.log2(facts.smallest_subnormal))
    return Range(name, smallest - 1, round(math.log2(facts.smallest_normal)), math.floor(math.log2(facts.max)) + 1)


def values(picture: Picture | None, ranks: int) -> str:
    """A drawing for each kind and dtype of which values were seen."""
    shown = [one for one in sorted(picture.histograms, key=_order) if one.elements] if picture is not None else []
    if picture is None or not shown:
        return ""
    low = max(FARTHEST, min([-26, *(one.lowest for one in shown if one.counts)])) - 1
    high = max([17, *(one.lowest + len(one.counts) for one in shown)]) + 1
    whose = f" of rank {picture.rank}" if ranks > 1 else ""
    scale = (
        f" Gradients are shown without the loss scale of {picture.loss_scale:,.0f}." if picture.loss_scale > 1 else ""
    )
    intro = (
        f"<p>Sampled elements{whose} in one step, by power of two. The bars below a drawing are the ranges of formats: "
        "full where a number keeps all its digits, striped where it loses some of them (subnormal). An update is what "
        f"arrived in the weights.{e(scale)}</p>"
    )
    figures = "".join(
        _figure(one, low, high, picture.loss_scale if one.what == "gradients" else 0.0) for one in shown[:MOST]
    )
    return section("values", "Values", [intro, PATTERNS, f"<div class=figures>{figures}</div>"])


def _order(one: Histogram) -> tuple[int, str, str]:
    place = {"activations": 4}.get(one.what, KINDS.index(one.what) if one.what in KINDS else 3)
    return place, one.what, one.dtype


PATTERNS = (
    "<svg width=0 height=0 aria-hidden=true class=defs><defs><pattern id=stripes width=5 height=5 "
    "patternUnits=userSpaceOnUse patternTransform='rotate(45)'><rect width=2.5 height=5 class=stripe></rect></pattern>"
    "</defs></svg>"
)


def _figure(one: Histogram, low: int, high: int, scale: float) -> str:
    """The drawing, and the same as a small table."""
    title = f"{e(one.what)} {chip(one.dtype)}"
    zeros = f"{share(one.zeros / one.elements)} zero" if one.zeros else "no zeros"
    bad = f", {share(one.not_finite / one.elements)} inf or nan" if one.not_finite else ""
    drawn = _drawing(one, low, high)
    rows = [_shares(one, name, range_of(name), 0) for name in FORMATS]
    if scale > 1:
        rows.insert(1, _shares(one, f"float16 × {scale:,.0f}", range_of("float16"), round(math.log2(scale))))
    head = "<tr><th scope=col>in</th><th scope=col class=n>to 0</th><th scope=col class=n>subnormal</th>"
    return (
        f"<figure><figcaption><b>{title}</b><br>"
        f"<span class=dim>{one.elements:,} elements, {zeros}{bad}</span></figcaption>"
        f"{drawn}<table class=shares><thead>{head}<th scope=col class=n>overflow</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></figure>"
    )


def _shares(one: Histogram, name: str, ends: Range, shift: int) -> str:
    gone, few, over = one.below(ends.zero - shift), one.below(ends.normal - shift), one.from_on(ends.end - shift)
    cells = "".join(f"<td class='n{'' if part else ' none'}'>{share(part)}</td>" for part in (gone, few - gone, over))
    return f"<tr><th scope=row>{e(name)}</th>{cells}</tr>"


def _drawing(one: Histogram, low: int, high: int) -> str:
    """Bars by exponent above the ranges of the formats; the wide scale is the same in all drawings."""

    def at(exponent: int) -> float:
        return LEFT + (min(max(exponent, low), high) - low) * (RIGHT - LEFT) / (high - low)

    counts: dict[int, int] = {}
    for offset, count in enumerate(one.counts):
        counts[max(one.lowest + offset, low)] = counts.get(max(one.lowest + offset, low), 0) + count
    most = max(counts.values(), default=1)
    bars = "".join(
        f"<rect class=val x={at(x):.1f} y={TOP + PLOT * (1 - n / most):.1f} "
        f"width={max(at(x + 1) - at(x) - 0.4, 0.6):.1f} height={PLOT * n / most:.1f}></rect>"
        for x, n in sorted(counts.items())
        if n
    )
    ticks = "".join(
        f"<line class=grid x1={at(x):.1f} x2={at(x):.1f} y1={TOP} y2={TOP + PLOT}></line>"
        f"<text class=tick x={at(x):.1f} y={TOP + PLOT + 12} text-anchor=middle>2{_raised(x)}</text>"
        for x in _ticks(low, high)
    )
    bands = "".join(_band(range_of(name), TOP + PLOT + 18 + row * BAND, at) for row, name in enumerate(FORMATS))
    height = TOP + PLOT + 18 + len(FORMATS) * BAND + 2
    said = f"sizes of {one.what} in {one.dtype}; the table below has the shares"
    return f'<svg viewBox="0 0 {RIGHT + 4} {height}" role=img aria-label="{e(said)}">{ticks}{bars}{bands}</svg>'


def _band(ends: Range, y: float, at: Callable[[int], float]) -> str:
    x0, x1, x2 = at(ends.zero), at(ends.normal), at(ends.end)
    label = ends.name.replace("float8_", "").replace("e4m3fn", "float8 e4m3").replace("e5m2", "float8 e5m2")
    return (
        f"<text class=tick x={LEFT - 6} y={y + 9} text-anchor=end>{label}</text>"
        f"<rect class=sub x={x0:.1f} y={y + 2} width={max(x1 - x0, 0):.1f} height={BAND - 5} fill='url(#stripes)'>"
        f"</rect><rect class=range x={x1:.1f} y={y + 2} width={max(x2 - x1, 0):.1f} height={BAND - 5}></rect>"
    )


def _ticks(low: int, high: int) -> Iterable[int]:
    step = 20 if high - low > 60 else 10
    return range(-(-low // step) * step, high, step)


def _raised(number: int) -> str:
    """-12 as a superscript."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
