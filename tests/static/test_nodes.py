"""The nodes that check walks: the same from Python's own parser and from LibCST, and cheap to have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from precaudit.static import newer, nodes
from precaudit.static.source import Source, parse

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "snippets").glob("*.py")) + sorted((HERE.parents[1] / "fixtures").glob("PA*/*.py"))[::8]
EVERYTHING = '''
@decorate(1)
async def f(a, /, b: int = 2, *rest, c=3, d: str, **named) -> int:
    """Text."""
    global g
    async with one() as (x, y), two:
        async for z in x:
            yield await z
    return (yield from b) if not a else {**named, "k": [*rest], 1: {2, 3}}


class C(Base, metaclass=Meta):
    x: int
    y: float = 1_0.5e3
    z[0, 1:2, ::3] += x @ y // 0x1F << 2 | ~a & -b ^ +c
    try:
        import a.b as c, d
        from ..e import (f as g, h)
        from . import *
    except (A, B) as error:
        raise X from error
    except Exception:
        pass
    else:
        del x
    finally:
        assert a < b <= c is not None and d not in e or f != g, "text"
    while (n := next(i)) and 3 % 2 ** 1 >= 0:
        if n: break
        elif m: continue
        else:
            if k: x = y = 1; z = ...
    for i, *j in [(lambda q, *r, s=1: q)(t) for t in u if t if v for w in t]:
        print(f"a{i!r:>3}b{{}}" "c", b"d" b"e", "f" 'g', None, True, 1j, *h, **k)
    match n:
        case 1 | None | a.b as c if x:
            s = {k: v for k, v in t}
        case _:
            s = {k async for k in t}
    s = (k for k in t) if 1 / 2 - 3 * 4 + 5 >> 6 > 7 == 8 in () else nonlocal_
'''


def shapes(text: str) -> tuple[nodes.Module, nodes.Module]:
    theirs = newer.parse(text)
    assert theirs is not None
    return nodes.parse(text), theirs


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_script_gives_the_same_nodes_at_the_same_places_by_either_parser(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ours, theirs = shapes(text)
    assert nodes.same(ours, theirs)
    source = Source(path.name, text, whole=True)
    kinds = (nodes.Call, nodes.BinaryOperation, nodes.Assign, nodes.Return, nodes.FunctionDef)
    placed = [[source.place(n) for n in nodes.walk(tree) if isinstance(n, kinds)] for tree in (ours, theirs)]
    assert placed[0] == placed[1]


def test_everything_that_can_be_written_gives_the_same_nodes_by_either_parser() -> None:
    ours, theirs = shapes(EVERYTHING)
    assert [type(n).__name__ for n in nodes.walk(ours)] == [type(n).__name__ for n in nodes.walk(theirs)]
    assert nodes.same(ours, theirs)


@pytest.mark.parametrize(
    "text",
    ["type X = int\n", "def first[T](xs: list[T]) -> T:\n    return xs[0].half()\n", 'x = f"{d["k"]}"\n'],
    ids=["type", "generic", "quotes"],
)
def test_source_that_is_newer_than_this_python_is_read(text: str) -> None:
    tree = newer.parse(text)
    assert tree is not None
    assert [type(n).__name__ for n in parse(text).body] == [type(n).__name__ for n in tree.body]


def test_a_place_counts_characters_and_the_lines_of_the_whole_file() -> None:
    text = "x = 1\n" * 70 + "def f(ä, b):\n" + "    y = 1  # line\n" * 30 + "    return 'äöü', ä.half()\nf(1, 2)\n"
    source = Source("x.py", text, roots=["f"])
    function = next(n for n in source.tree.body if isinstance(n, nodes.FunctionDef))
    assert source.place(function.name)[:2] == (71, 4)
    call = next(n for one in source.body(function) for n in nodes.walk(one) if isinstance(n, nodes.Call))
    line, column, _, end = source.place(call)
    assert text.splitlines()[line - 1][column:end] == source.code(call) == "ä.half()"


def test_nodes_are_told_apart_by_what_they_are_not_by_what_they_say() -> None:
    one, two = (nodes.parse("x[0]").body[0].body[0].value for _ in range(2))
    assert len({one, two}) == 2
    assert nodes.same(one, two)
    assert not nodes.same(one, nodes.parse("x[1]").body[0].body[0].value)


def runs(code: str) -> None:
    """Runs code in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["model = torch.nn.Linear(4, 4)", "model = torch.nn.Linear(4, 4).half()"])
def test_a_file_without_findings_needs_neither_pydantic_nor_libcst(source: str) -> None:
    runs(
        f"""
from sys import modules
from precaudit.static.files.run import examine
from precaudit.static.files.discovery import Found
result = examine(Found("train.py", "train.py"), b'''import torch
with torch.autocast("cuda"):
    {source}
''')
assert "error" not in result, result
assert not {{"pydantic", "rich", "libcst"}} & set(modules)
"""
    )
