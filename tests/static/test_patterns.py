"""No regular expression of the static pass takes more than linear time, whatever the file under check looks like."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import precaudit.static

UNITS = (
    *" \t\n\"'#([{)]}.,:=@\\-+*/!x0_",
    *(
        "''",
        '""',
        '"""',
        "'''",
        '\\"',
        "\\'",
        "x ",
        " x",
        "x.",
        ".x",
        "x\n",
        "\n ",
        "    \n",
        "()",
        "[0]",
        "{}",
        "x=",
        "x = ",
    ),
    *(
        "x: ",
        "x,",
        "x, ",
        "@x\n",
        "def x",
        "def x(",
        "class x",
        "class x:\n",
        "async def ",
        "if ",
        "elif x:\n",
        "for x in ",
        "in (",
        "not in [",
    ),
    *(
        "== ",
        "is not ",
        "x + ",
        "x or ",
        "lambda: ",
        "# ",
        "#x\n",
        "noqa: ",
        "# precaudit: ",
        "ignore[",
        "float16",
        ".half",
        "'half",
        "fp16 = ",
    ),
    *(
        "bf16': ",
        "precision = '",
        "autocast",
        "load_in_4bit",
        "*x",
        "torch.",
        "float16 in (",
        "x in [",
        "\x0c",
        "é",
        "-> ",
        "import x",
        "__x__",
    ),
)
"""What is repeated; each pattern is also given the pieces that it is made of itself."""
SMALL, LARGE = 1_000, 4_000
"""Characters. Linear time grows by 4 between them, quadratic time by 16."""
GROWTH = 9
TOO_SHORT = 0.01
"""Seconds of CPU below which a time says nothing; quadratic time is far above it."""


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(precaudit.static.__path__, "precaudit.static.")
    return [importlib.import_module(each.name) for each in found]


def patterns() -> dict[str, re.Pattern[str] | re.Pattern[bytes]]:
    """Each regular expression of the modules: those that they hold, and those written where they are used."""
    found: dict[str, re.Pattern[str] | re.Pattern[bytes]] = {}
    for module in modules():
        name = module.__name__.removeprefix("precaudit.static.")
        for held, value in vars(module).items():
            if isinstance(value, re.Pattern):
                found.setdefault(f"{name}.{held}", value)
        assert module.__file__ is not None
        calls = [node for node in ast.walk(ast.parse(Path(module.__file__).read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            function = ast.unparse(call.func)
            if re.fullmatch(r"re\.[a-z]+", function) and function != "re.escape":
                written = compiled(call, module)
                if all((written.pattern, written.flags) != (known.pattern, known.flags) for known in found.values()):
                    found[f"{name}:{call.lineno}"] = written
    return found


def compiled(call: ast.Call, module: ModuleType) -> re.Pattern[str]:
    """The pattern of `re.compile(…)`, `re.sub(…)` …; what is only known when it runs is four spaces."""
    pattern = call.args[0]
    if isinstance(pattern, ast.JoinedStr):
        pieces = [
            str(part.value)
            if isinstance(part, ast.Constant)
            else str(vars(module).get(ast.unparse(part.value), "    "))  # type: ignore[attr-defined]
            for part in pattern.values
        ]
        return re.compile("".join(pieces), re.MULTILINE)
    value = eval(compile(ast.Expression(pattern), "<pattern>", "eval"), vars(module))
    return re.compile(value, re.MULTILINE if "MULTILINE" in ast.unparse(call) else 0)


def units(pattern: re.Pattern[str] | re.Pattern[bytes]) -> Iterator[str]:
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    own = re.findall(r"[A-Za-z_]{2,}", re.sub(r"\\[a-zA-Z]|\(\?P<\w+>", " ", source))
    yield from UNITS
    yield from own
    yield from (piece + " " for piece in own)
    yield from (first + second for first in " x\"'(.,\n" for second in "=:#)\\.")


def seconds(pattern: re.Pattern[str] | re.Pattern[bytes], text: str) -> float:
    given = text if isinstance(pattern.pattern, str) else text.encode()
    start = time.process_time()
    for _ in pattern.finditer(given):  # type: ignore[arg-type]
        pass
    return time.process_time() - start


def superlinear(pattern: re.Pattern[str] | re.Pattern[bytes], tried: Iterable[str]) -> list[str]:
    """The units on whose repetition the pattern takes more than linear time."""
    found = []
    for unit in dict.fromkeys(tried):
        small, large = (unit * (size // len(unit)) + "\n!" for size in (SMALL, LARGE))
        if seconds(pattern, large) > TOO_SHORT:
            growth = seconds(pattern, large) / min(seconds(pattern, small) for _ in range(3))
            if growth > GROWTH:
                found.append(unit)
    return found


@pytest.mark.parametrize("quadratic", [r"\"(?:\\.|[^\"\\\n])*\"", r"\s*x"])
def test_the_search_finds_what_is_quadratic(quadratic: str) -> None:
    assert superlinear(re.compile(quadratic), UNITS)


@pytest.mark.parametrize("name", sorted(patterns()))
def test_a_pattern_takes_linear_time(name: str) -> None:
    assert superlinear(patterns()[name], units(patterns()[name])) == []
