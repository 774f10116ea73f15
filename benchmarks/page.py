"""The tables of docs/performance.md, from the figures that `benchmarks/trace.py --save` keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)

TRACED, EMPTY = "precaudit, traced steps", "empty dispatch mode"
BEFORE, AFTER = "precaudit, before the window", "precaudit, after the trace"


def newest() -> dict[str, Any]:
    """The figures that were saved last."""
    read: dict[str, Any] = json.loads(max(RESULTS.glob("trace-*.json")).read_text(encoding="utf-8"))
    return read


def tables(saved: dict[str, Any]) -> str:
    """Steps, identity and memory, as Markdown."""
    machine, results = saved["machine"], saved["results"]
    lines = [
        f"Of {machine['date']}: torch {machine['torch']}, Python {machine['python']}, {machine['cores']} cores of "
        f"{machine['processor']}, {machine['threads']} thread.",
        "",
        "| Shape | operations | untraced | traced | empty mode | traced / untraced | goal | before | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in results.items():
        if "variants" in row:
            of = row["variants"]
            reached, goal = of[TRACED]["ratio"], row["goal"]
            lines.append(
                f"| {name} | {row['ops_per_step']:,} | {of['untraced']['ms']:.1f} ms | {of[TRACED]['ms']:.1f} ms | "
                f"{of[EMPTY]['ratio']:.2f} | {reached:.2f} | {_goal(reached, goal)} | "
                f"{of[BEFORE]['ratio']:.2f} | {of[AFTER]['ratio']:.2f} |"
            )
    asked = results.get("identity")
    if asked:
        reached, goal = asked["microseconds"], asked["goal"]
        lines += [
            "",
            f"`running += loss` asks {asked['questions']} times whose memory that is: {reached:.2f} µs in all "
            f"(goal {_goal(reached, goal)}).",
        ]
    if results.get("memory"):
        lines += [
            "",
            "| Peak memory | untraced | traced | traced / untraced | goal |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, row in results["memory"].items():
            ratio, goal = row["ratio"], row["goal"]
            lines.append(
                f"| {name} | {row['plain_mb']:,} MB | {row['traced_mb']:,} MB | {ratio:.2f} | {_goal(ratio, goal)} |"
            )
    return "\n".join(lines) + "\n"


def _goal(reached: float, goal: float) -> str:
    return f"{goal:.2f}" if reached <= goal else f"{goal:.2f}, **missed**"


def written(text: str, saved: dict[str, Any]) -> str:
    """The page with these figures in it."""
    return BLOCK.sub(lambda found: found[1] + tables(saved) + found[3], text)


def write(saved: dict[str, Any]) -> None:
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), saved), encoding="utf-8")


if __name__ == "__main__":
    write(newest())
