"""A file as LibCST gives it: places in the whole file, syntax of any Python, and one line for what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import libcst as cst
import pytest
from libcst import matchers
from libcst.metadata import MetadataWrapper, PositionProvider

from precaudit.static.files.discovery import Found
from precaudit.static.files.run import examine
from precaudit.static.source import Source, parse

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "snippets").glob("*.py")) + sorted((HERE.parents[1] / "fixtures").glob("PA*/*.py"))[::8]
WORDS = matchers.Name() | matchers.Attribute() | matchers.Call() | matchers.Return() | matchers.FunctionDef()


def places(source: Source, tree: cst.CSTNode) -> list[tuple[int, ...]]:
    return [tuple(source.place(node)) for node in matchers.findall(tree, WORDS)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_function_that_is_parsed_alone_stands_where_it_does_in_the_whole_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    source, whole = Source(path.name, text + "# line\n" * 60), Source(path.name, text, whole=True)
    for function in matchers.findall(source.tree, matchers.FunctionDef()):
        assert isinstance(function, cst.FunctionDef)
        (same,) = [
            node
            for node in matchers.findall(whole.tree, matchers.FunctionDef())
            if whole.place(node)[:2] == source.place(function)[:2]
        ]
        assert isinstance(same, cst.FunctionDef)
        found = [places(source, statement) for statement in source.body(function)]
        assert found == [places(whole, statement) for statement in whole.body(same)]


def test_a_place_counts_characters_and_the_lines_of_the_whole_file() -> None:
    text = "x = 1\n" * 70 + "def f(ä, b):\n" + "    y = 1  # line\n" * 30 + "    return 'äöü', ä.half()\nf(1, 2)\n"
    source = Source("x.py", text, roots=["f"])
    function = next(n for n in source.tree.body if isinstance(n, cst.FunctionDef))
    assert source.place(function.name)[:2] == (71, 4)
    (call,) = [n for one in source.body(function) for n in matchers.findall(one, matchers.Call())]
    line, column, _, end = source.place(call)
    assert text.splitlines()[line - 1][column:end] == source.code(call) == "ä.half()"


def test_the_code_of_a_class_has_what_was_left_out_of_it_and_nothing_of_its_neighbours() -> None:
    method = "    def {}(self, x):\n" + "        # by kahan\n" * 20 + "        return x{}\n"
    shown = "class A:\n" + method.format("unused", "") + method.format("forward", ".half()") + method.format("last", "")
    text = f"import torch\ndef before():\n    return 1\n{shown}def after():\n    pass\n"
    source = Source("x.py", text + "# line\n" * 60)
    (found,) = [node for node in source.tree.body if isinstance(node, cst.ClassDef)]
    assert source.code(found) == shown


@pytest.mark.parametrize(
    "text",
    [
        "type X = int\n",
        "def first[T](xs: list[T]) -> T:\n    return xs[0].half()\n",
        'x = f"{d["k"]}"\n',
        "match x:\n    case [1, *rest] | {'a': rest} if rest:\n        pass\n",
        "try:\n    pass\nexcept* ValueError:\n    pass\n",
        "with (a as b, c as d):\n    pass\n",
    ],
    ids=["type", "generic", "quotes", "match", "except*", "with"],
)
def test_syntax_of_any_python_is_read(text: str) -> None:
    assert parse(text).code == text


def test_a_file_that_python_takes_and_libcst_does_not_is_told_with_the_way_out() -> None:
    refused = "class A(metaclass=B, *bases): pass\n"
    compile(refused, "x.py", "exec")
    text = "import torch\n" + "# line\n" * 60 + refused + "x = A(torch.zeros(3).half())\n"
    error = examine(Found("x.py", "x.py"), text.encode())["error"]
    assert re.fullmatch(
        r"LibCST [\d.]+ does not know the syntax near line 63; update it \(pip install -U libcst\)", error
    )


def test_places_are_those_of_libcst_itself() -> None:
    text = "x = [\n  (a.b), # c\n  f'{c}', 'd'\n 'e' ]\n@g\ndef h(): return x\n"
    source = Source("x.py", text, whole=True)
    theirs = MetadataWrapper(cst.parse_module(text)).resolve(PositionProvider)
    ours = [(type(node).__name__, tuple(source.place(node))) for node in source.nodes()]
    assert ours == [
        (type(node).__name__, (at.start.line, at.start.column, at.end.line, at.end.column))
        for node, at in theirs.items()
    ]


def runs(code: str) -> None:
    """Runs code in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["model = torch.nn.Linear(4, 4)", "model = torch.nn.Linear(4, 4).half()"])
def test_a_file_without_findings_needs_no_pydantic(source: str) -> None:
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
assert not {{"pydantic", "rich"}} & set(modules)
"""
    )
