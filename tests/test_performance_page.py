"""docs/performance.md shows the figures that the benchmark saved last. `benchmarks/trace.py --save` writes both."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_page_shows_the_saved_figures() -> None:
    written = page()
    text = written.PAGE.read_text(encoding="utf-8")
    assert written.written(text, written.newest()) == text, "python benchmarks/page.py writes it"


def test_a_goal_that_is_not_reached_is_called_missed() -> None:
    variants = {
        name: {"ms": 1.0, "ratio": ratio}
        for name, ratio in (
            ("untraced", 1.0),
            ("empty dispatch mode", 1.4),
            ("precaudit, before the window", 1.0),
            ("precaudit, traced steps", 1.7),
            ("precaudit, after the trace", 1.0),
        )
    }
    machine = {"date": "d", "torch": "t", "python": "p", "cores": 2, "processor": "x", "threads": 1}
    rows = {name: {"ops_per_step": 9, "goal": goal, "variants": variants} for name, goal in (("a", 1.6), ("b", 1.8))}
    memory = {"c": {"plain_mb": 100, "traced_mb": 140, "ratio": 1.4, "goal": 1.3}}
    shown = page().tables({"machine": machine, "results": {**rows, "memory": memory}}).splitlines()
    missed = [line.split("|")[1].strip() for line in shown if "**missed**" in line]
    assert missed == ["a", "c"]
