"""The exact step on the page: a plot of the error budget, and the three tables."""

from __future__ import annotations

import html
from collections.abc import Sequence
from math import log10

from precaudit.model.exact import ExactStep
from precaudit.report import exact as said
from precaudit.report import what_if
from precaudit.report.evidence import share
from precaudit.report.words import visible

DECADES = 6
"""Of the axis of the plot: from a millionth to all."""
LEFT, ACROSS, RIGHT, ROW = 118, 180, 150, 24
"""Points for the names, the bars, the numbers; and the height of a row."""


def content(exact: ExactStep, ranks: int) -> list[str]:
    """What stands in the section, as HTML."""
    summed = "".join(f"<dt>{_e(label)}</dt><dd>{_e(text)}</dd>" for label, text in said.budget(exact))
    parts = [f"<p>{_e(said.heading(exact, ranks))}.</p>", plot(exact), f"<dl>{summed}</dl>"]
    for table in (said.parameters(exact), said.operations(exact)):
        parts += [_table(table)] if table.rows else []
    if exact.what_if is not None:
        rows = "".join(
            f"<dt>{_e(label)}</dt><dd>{_e(text)}</dd>" for label, text in what_if.lines(exact.what_if, everything=True)
        )
        parts.append(f"<p>{_e(what_if.heading(exact.what_if, exact.step))}.</p><dl>{rows}</dl>")
    return parts


def plot(exact: ExactStep) -> str:
    """An SVG of how far each quantity is off, on a logarithmic axis: a bar to the median, a mark at the worst."""
    found = said.spread(exact)
    if not found:
        return ""
    height = ROW * (len(found) + 1) + 8
    drawn = [_axis(height)]
    for at, (label, middle, worst) in enumerate(found):
        top = at * ROW + 4
        drawn += [
            f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{_e(label)}</text>',
            f'<rect x="{LEFT}" y="{top + 3}" width="{max(_x(middle) - LEFT, 1):.1f}" height="{ROW - 8}" rx="3" '
            'fill="var(--warning,#b26a00)"/>',
            f'<line x1="{_x(worst):.1f}" x2="{_x(worst):.1f}" y1="{top + 1}" y2="{top + ROW - 3}" stroke-width="3" '
            'stroke="var(--error,#b42318)"/>',
            f'<text x="{LEFT + ACROSS + 8}" y="{top + 15}">{_e(_numbers(middle, worst))}</text>',
        ]
    whole = LEFT + ACROSS + RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" role="img" font-size="13" '
        f'style="max-width:{whole}px;width:100%;font-family:system-ui,sans-serif" fill="var(--fg,#6e7781)">'
        f"<title>How far each quantity of the step is off: the median, and the worst</title>{''.join(drawn)}</svg>"
    )


def _axis(height: int) -> str:
    """A faint line and its number every two decades."""
    drawn = []
    for decade in range(0, DECADES + 1, 2):
        value = 10.0 ** (decade - DECADES)
        x, name = _x(value), share(value)
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - ROW}" stroke="var(--line,#b8bfc7)"/>'
            f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" font-size="11">{_e(name)}</text>'
        )
    return "".join(drawn)


def _x(value: float) -> float:
    """Where on the axis an error stands; what is off it, at its end."""
    decade = log10(value) + DECADES if value > 0 else 0.0
    return LEFT + ACROSS * min(max(decade / DECADES, 0.0), 1.0)


def _numbers(middle: float, worst: float) -> str:
    return share(middle) if middle == worst else f"{share(middle)}; worst {share(worst)}"


def _table(table: said.Table) -> str:
    """A plain table of words."""
    columns = "".join(f"<th scope=col>{_e(name)}</th>" for name in table.head)
    body = "".join(_row(row) for row in table.rows)
    opening = "<div class=wide role=region aria-labelledby=exact-title tabindex=0><table><thead><tr>"
    return f"{opening}{columns}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in cells)}</tr>"


def _e(text: object) -> str:
    return html.escape(visible(str(text)))
