"""Whatever the source looks like, the static pass answers and executes nothing."""

from __future__ import annotations

import os
import random
import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Excluder, Found, discover
from precaudit.static.files.run import examine, examine_all

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


CHAINS = [
    "x{}",
    "x or {}",
    "x/{}",
    "x @ {}",
    "not {}",
    "lambda: {}",
    "lambda y={}: y",
    "x if x else {}",
    "x**{}",
    "x[0] + {}",
]
CHAINS += ["{}[0]", "{}.to(torch.float16)", "{}()", "{}.a", "{}\\\n.a"]


@pytest.mark.parametrize("link", CHAINS)
def test_a_chain_that_would_overflow_the_parser_or_keep_it_for_minutes_is_refused(link: str) -> None:
    front, back = (part * 20_000 for part in link.split("{}"))
    text = f"import torch\ny = (\n{front}x{back})\nz = y.to(torch.float16)\n"
    start = time.process_time()
    result = examine(Found("/nowhere/x.py", "x.py"), text.encode())
    assert time.process_time() - start < 30
    assert result.get("error") == "nested too deeply to parse" or "facts" in result


@pytest.mark.parametrize("signs", ["(", "[", "...", "----"])
def test_signs_in_strings_are_no_chain(signs: str) -> None:
    lines = "".join(f"x{number} = '{signs * 20}', \"{signs}\"\n" for number in range(400))
    assert "error" not in examine(Found("/nowhere/x.py", "x.py"), f"import torch\n{lines}y = x.half()\n".encode())


GROWING = ["n = 2900000000 * 'a'", "n = b'a' * 2900000000", "n = '%2900000000d' % 5", "n = x + 1" + "0" * 400]
GROWING += ["n = [x]\n" + "n = n + n\n" * 60, "n = 'a'\n" + "n = f'{n}{n}'\n" * 60, "n = [x]\n" + "n = [*n, *n]\n" * 60]
GROWING += ["n = f'{0x" + "f" * 5000 + "}'", f"from {'a' * 3000} import f"]


@pytest.mark.parametrize("code", GROWING, ids=[code[:16] for code in GROWING])
def test_a_value_does_not_grow_without_end(code: str) -> None:
    text = f"import torch\nx = torch.zeros(2, dtype=torch.bfloat16)\n{code}\n"
    start = time.process_time()
    assert "error" not in examine(Found("/nowhere/x.py", "x.py"), text.encode())
    assert time.process_time() - start < 5


def test_a_pipe_and_a_link_to_a_device_are_told_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    os.symlink("/dev/zero", tmp_path / "zeros.py")
    os.mkfifo(tmp_path / ".gitignore")
    found = discover([str(tmp_path)], Excluder(tmp_path, (), True)).found
    results = examine_all(found, Cache(None), jobs=1)
    assert [result["error"] for _, result in results] == ["cannot be read: not a regular file"] * 2


@pytest.mark.parametrize("pattern", ["!", "*a" * 28 + "*b", "[", "\\"])
def test_a_pattern_of_gitignore_that_git_takes_in_silence_is_no_error(pattern: str, tmp_path: Path) -> None:
    (tmp_path / ("a" * 100 + ".py")).write_text("")
    (tmp_path / "left_out.py").write_text("")
    (tmp_path / ".gitignore").write_text(f"{pattern}\nleft_*\n")
    found = discover([str(tmp_path)], Excluder(tmp_path, (), True)).found
    assert [item.path.name for item in found] == ["a" * 100 + ".py"]


def test_a_lambda_among_the_methods_of_a_class_is_no_internal_error() -> None:
    methods = "    low = lambda self, x: x.half()\n\n    def f(self, x):\n        return x.half()\n"
    result = examine(Found("/nowhere/x.py", "x.py"), f"import torch\n\n\nclass A:\n{methods}".encode())
    assert result["facts"] == []
