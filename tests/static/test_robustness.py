"""Whatever the source looks like, the static pass answers and executes nothing."""

from __future__ import annotations

import random
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
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


PROLOGUE = """
import torch, functools, copy, contextlib, itertools, math
x = torch.zeros(3, dtype=torch.float16)
module = torch.nn.Linear(3, 3).half()
optimizer = torch.optim.AdamW(module.parameters())
scaler = torch.amp.GradScaler("cuda")
named, listed = {"a": x}, [x]
"""
MODULES = """
torch torch.nn torch.nn.functional torch.nn.utils torch.nn.init torch.optim torch.amp torch.linalg torch.autograd
""".split()
FUNCTIONS = """
isinstance getattr setattr map filter zip enumerate next iter list tuple dict set len min max sum range sorted float
functools.partial functools.reduce copy.deepcopy copy.copy contextlib.nullcontext itertools.chain math.sqrt
""".split()
FUNCTIONS += [
    f"{module}.{name}"
    for module in MODULES
    for name, value in sorted(vars(import_module(module)).items())
    if callable(value) and name.isidentifier() and not name.startswith("_")
]
OBJECTS: dict[str, Any] = {
    "x": torch.Tensor,
    "x.grad": torch.Tensor,
    "module": torch.nn.Linear,
    "optimizer": torch.optim.AdamW,
    "scaler": torch.amp.GradScaler,
    "named": dict,
    "listed": list,
    "'text'": str,
}
METHODS = [f"{name}.{m}" for name, kind in OBJECTS.items() for m in dir(kind) if not m.startswith("__")]


@pytest.mark.parametrize("called", [FUNCTIONS, METHODS], ids=["functions", "methods"])
@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "x",
        "input=x",
        "other=x",
        "x, x",
        "x, x, x, x",
        "None",
        "*[]",
        "**named",
        "listed",
        "[]",
        "module",
        "optimizer",
    ],
)
def test_a_call_with_any_arguments_or_none_is_no_internal_error(called: list[str], arguments: str) -> None:
    def fails(names: list[str]) -> bool:
        lines = [f"def call_{number}():\n    return {name}({arguments}) + 1\n" for number, name in enumerate(names)]
        calls = [f"call_{number}()\n" for number in range(len(names))]
        return "error" in examine(Found("/nowhere/x.py", "x.py"), "".join([PROLOGUE, *lines, *calls]).encode())

    assert len(called) > 500
    if fails(called):
        pytest.fail(f"({arguments}): " + ", ".join(name for name in called if fails([name])))


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
