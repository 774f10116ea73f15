"""Whatever the source looks like, the static pass answers and executes nothing."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precaudit.static.files import Found
from precaudit.static.run import examine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = [p.read_text() for p in sorted((HERE / "snippets").glob("*.py"))]
SOURCES += [p.read_text() for p in sorted((ROOT / "fixtures").glob("**/*.py"))]
KEYS = {"facts", "suppressions", "siblings", "compiled", "error"}
"""Of a result without `internal`."""
WORDS = sorted(set(re.findall(r"\w+|[^\w\s]", "\n".join(SOURCES))))


def mutated(seed: int) -> str:
    """A real source with some of its words, lines and blocks exchanged."""
    rng = random.Random(seed)
    lines = rng.choice(SOURCES).splitlines()
    for _ in range(rng.randrange(1, 6)):
        if not lines:
            break
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, rng.choice(rng.choice(SOURCES).splitlines() or [""]))
        elif kind == 2:
            parts = re.split(r"(\w+)", lines[at])
            parts[rng.randrange(len(parts))] = rng.choice(WORDS)
            lines[at] = "".join(parts)
        elif kind == 3:
            lines[at] = "    " + lines[at]
        elif kind == 4:
            lines[at] = lines[at].replace("(", "(*", 1)
        else:
            lines[at:at] = lines[at : at + rng.randrange(1, 8)]
    return "\n".join(lines) + "\n"


def check_once(seed: int) -> None:
    result = examine(Found("/nowhere/x.py", "x.py"), mutated(seed).encode("utf-8", "surrogatepass"))
    assert set(result) <= KEYS


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_a_mutated_source_is_no_internal_error(seed: int) -> None:
    check_once(seed)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_two_thousand_mutated_sources_are_no_internal_error(seed: int) -> None:
    check_once(seed)


def test_deep_nesting_is_no_recursion_error() -> None:
    for text in (
        "x = float16" + "+1" * 4000,
        "x = float16" + ".b" * 900,
        "x = float16" + "()" * 1500,
        "x = " + "-" * 900 + "float16",
        "if float16: pass\n" + "elif a: pass\n" * 1500,
        "def f(x):\n    return f(f(x.half()))\nf(1)\n",
        "class A(A):\n    x = float16\nA()\n",
        "a = []\na.append(a)\nfor x in a:\n    for y in x: y.half()\n",
    ):
        check = examine(Found("/nowhere/x.py", "x.py"), text.encode())
        assert set(check) <= KEYS


def test_a_lambda_among_the_methods_of_a_class_is_no_internal_error() -> None:
    methods = "    low = lambda self, x: x.half()\n\n    def f(self, x):\n        return x.half()\n"
    result = examine(Found("/nowhere/x.py", "x.py"), f"import torch\n\n\nclass A:\n{methods}".encode())
    assert result["facts"] == []
