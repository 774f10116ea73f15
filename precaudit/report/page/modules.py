"""The tree of modules: what each holds in which dtype, and how many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from precaudit.model.wire import Held, Report
from precaudit.report import words
from precaudit.report.page.parts import chip, e, section

MOST = 400
"""Names that have a row."""
OPEN = 24
"""A tree of at most so many names is shown open."""


@dataclass
class Node:
    """A module, or a parameter or buffer of one."""

    children: dict[str, Node] = field(default_factory=dict)
    held: Held | None = None

    @property
    def bytes(self) -> int:
        own = sum(self.held.bytes.values()) if self.held is not None else 0
        return own + sum(child.bytes for child in self.children.values())

    def dtypes(self, what: str) -> set[str]:
        """Of all weights, or the like, from here on down."""
        own = set(self.held.dtypes.get(what, ())) if self.held is not None else set()
        return own.union(*(child.dtypes(what) for child in self.children.values()))


def modules(report: Report) -> str:
    """Nested lists that open and close without a script; with one they can be searched."""
    rows = report.inventory[:MOST]
    if not rows:
        return ""
    root = Node()
    for row in rows:
        node = root
        for name in row.name.split("."):
            node = node.children.setdefault(name, Node())
        node.held = row
    left = len(report.inventory) - len(rows)
    more = [f"<p class=dim>{left:,} more names are in the JSON report.</p>"] if left else []
    intro = (
        "<p>What was held after the first traced step, and what modules computed in. <code>*</code> stands for every "
        "number.</p>"
    )
    search = (
        "<p class=search hidden><label>Search <input type=search id=search placeholder='norm, bfloat16 …' "
        "autocomplete=off></label> <span id=matches role=status></span></p>"
    )
    return section("modules", "Modules", [intro, search, _list(root, len(rows) <= OPEN), *more])


def _list(node: Node, shown: bool) -> str:
    return f"<ul class=tree>{''.join(_item(name, child, shown) for name, child in node.children.items())}</ul>"


def _item(name: str, node: Node, shown: bool) -> str:
    size = f" <span class=dim>{words.size(node.bytes)}</span>" if node.bytes else ""
    if node.children:
        weights = " ".join(chip(dtype) for dtype in sorted(node.dtypes("weight")))
        below = _list(node, shown)
        own = f"<ul class=tree>{_leaf('(itself)', node.held, '')}</ul>" if node.held is not None else ""
        opened = " open" if shown else ""
        return (
            f"<li><details{opened}><summary><code>{e(name)}</code> {weights}{size}</summary>{own}{below}</details></li>"
        )
    return _leaf(name, node.held, size) if node.held is not None else ""


def _leaf(name: str, held: Held, size: str) -> str:
    times = f" <span class=dim>× {held.tensors:,}</span>" if held.tensors > 1 else ""
    chips = " ".join(chip(", ".join(dtypes), _short(what)) for what, dtypes in _ordered(held))
    return f"<li class=leaf><code>{e(name)}</code>{times}{size}<br><span class=chips>{chips}</span></li>"


def _ordered(held: Held) -> Sequence[tuple[str, list[str]]]:
    """Weight and gradient first, then what the optimizer keeps."""
    first = ("weight", "buffer", "gradient")
    return sorted(held.dtypes.items(), key=lambda one: (first.index(one[0]) if one[0] in first else 9, one[0]))


def _short(what: str) -> str:
    """`exp_avg` of `AdamW.exp_avg`."""
    return what.rpartition(".")[2]
