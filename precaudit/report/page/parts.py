"""The smallest parts of the page: escaped text, sections, tables, badges and chips."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from precaudit.report import words


def e(text: object) -> str:
    """Text from outside, with nothing in it that a browser would obey."""
    return html.escape(words.visible(str(text)))


def section(key: str, title: str, parts: Iterable[str]) -> str:
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{"".join(parts)}</section>'
    )


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 99) -> str:
    """A table of words, which scrolls where it is too wide; from column `numbers` on it is set to the right."""
    side = ["" if at < numbers else " class=n" for at in range(len(head))]
    columns = "".join(f"<th scope=col{side[at]}>{e(name)}</th>" for at, name in enumerate(head))
    body = "".join(
        f"<tr>{''.join(f'<td{side[at]}>{e(cell)}</td>' for at, cell in enumerate(row))}</tr>" for row in rows
    )
    return wide(label, f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody>")


def wide(label: str, content: str) -> str:
    """A table that scrolls by itself, with the keyboard too, named by its section."""
    return f"<div class=wide role=region aria-labelledby={label} tabindex=0><table>{content}</table></div>"


def badge(level: str) -> str:
    sign = {"error": "✕", "warning": "!", "note": "i"}.get(level, "")
    return f'<span class="badge {level}"><span aria-hidden=true>{sign}</span> {level}</span>'


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar; its number stands beside it in words."""
    return f'<span class=bar aria-hidden=true><span style="width:{min(max(share, 0.0), 1.0):.2%}"></span></span>'


def chip(dtype: str, what: str = "") -> str:
    """A dtype with a colour of its own, and its name."""
    family = next((f for f in ("bfloat16", "float16", "float32", "float64", "float8") if dtype.startswith(f)), "other")
    return f'<span class="chip {family}">{e(f"{what} {dtype}".strip())}</span>'
