"""A family of rules is one file: found where it stands, with marks of its own that nobody else lists."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from precaudit.model.vocabulary import Fact
from precaudit.static import detectors
from precaudit.static.analyze import analyze
from precaudit.static.source import Source

STATIC = Path(detectors.__file__).parent.parent

DETECTOR = '''
"""E[x * x] - E[x] ** 2: two large numbers whose difference is small."""

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Mark

MEAN = Mark(lambda one, other: one if one == other else None)


def listen(bus):
    bus.on("mean", lambda op: MEAN.put(op.result, "of square" if op.first.op in ("pow", "square") else "plain"))
    bus.on("pow square", lambda op: MEAN.put(op.result, "squared" if MEAN.of(op.first) else None))
    bus.on("sub", difference)


def difference(op):
    if [MEAN.of(value) for value in op.operands] == ["of square", "squared"]:
        op.run.facts.add(Kind.OP, op.spot, op.result.dtype, op="variance-by-difference")
'''

SCRIPT = """
import torch


def variance(x):
    x = x.half()
    mean, square = x.mean(-1), x.pow(2).mean(-1)
    if x.ndim > 2:
        mean = mean.squeeze(0)
    return square - mean.pow(2)


def plain(x):
    return x.half().pow(2).mean(-1) - x.half().mean(-1)


def wide(x):
    return x.float().pow(2).mean(-1) - x.float().mean(-1).pow(2)
"""


@pytest.fixture
def another_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "low_variance.py").write_text(DETECTOR)
    monkeypatch.setattr(detectors, "__path__", [*detectors.__path__, str(tmp_path)])
    detectors.found.cache_clear()
    yield
    detectors.found.cache_clear()
    sys.modules.pop("precaudit.static.detectors.low_variance", None)


def facts_of(text: str) -> list[Fact]:
    return analyze(Source("script.py", text, whole=True))[0]


def test_a_detector_in_a_folder_of_its_own_is_heard(another_detector: None) -> None:
    found = [f for f in facts_of(SCRIPT) if f.attrs.get("op") == "variance-by-difference"]
    assert [(f.site.line if f.site else 0, f.dtype) for f in found] == [(10, "float16")]


def test_without_it_nothing_is_said() -> None:
    assert not [f for f in facts_of(SCRIPT) if f.attrs.get("op") == "variance-by-difference"]


def imports(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((STATIC / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield path.name, node.module


@pytest.mark.parametrize(
    ("folder", "above"), [("language", "overlays"), ("language", "detectors"), ("overlays", "detectors")]
)
def test_what_is_below_does_not_know_what_is_above(folder: str, above: str) -> None:
    assert [(name, module) for name, module in imports(folder) if module.startswith(f"precaudit.static.{above}")] == []
