"""LibCST as check imports it: the same nodes, without what a parser's nodes do not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = "import dataclasses\nmade = dataclasses.dataclass\n"
OURS = "from precaudit.static.nodes import cst\n"
THEIRS = "import libcst\n"


def passes(code: str) -> None:
    """Runs code in a Python of its own, where nobody has imported LibCST yet."""
    done = subprocess.run([sys.executable, "-c", BEFORE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", [OURS, THEIRS + OURS], ids=["we-import-it", "it-was-imported"])
def test_a_text_parses_to_nodes_that_render_hash_and_compare_as_libcst_says(order: str) -> None:
    passes(
        order
        + """
text = "# what\\ndef f(x: int = 1, *rest, **named) -> str:\\n    return f'{x!r:>3}' + [y for y in rest][0]  # why\\n"
tree = cst.parse_module(text)
assert tree.code == text
one, two = cst.Name("x"), cst.Name("x")
assert one != two and one == one and len({one, two}) == 2 and one.deep_equals(two)
assert "value='x'" in repr(one)
assert tree.with_changes(body=()).code == "# what\\n"
class Rename(cst.CSTTransformer):
    def leave_Name(self, old, new):
        return new.with_changes(value="z") if old.value == "x" else new
assert tree.visit(Rename()).code == text.replace("x: int", "z: int").replace("{x!r", "{z!r")
"""
    )


def test_the_nodes_are_plain_and_everybody_elses_dataclasses_are_as_they_were() -> None:
    passes(
        OURS
        + """
assert dataclasses.dataclass is made
node = cst.parse_expression("f(x)")
node.func = cst.Name("g")
assert not hasattr(node, "__post_init__")
place = cst.metadata.CodePosition(1, 2)
assert place == cst.metadata.CodePosition(1, 2)
try:
    place.line = 3
except dataclasses.FrozenInstanceError:
    raise SystemExit(0)
raise SystemExit("LibCST's other dataclasses are frozen as before")
"""
    )


def test_libcst_stays_as_it_is_where_somebody_imported_it_before() -> None:
    passes(
        THEIRS
        + OURS
        + """
assert dataclasses.dataclass is made and hasattr(libcst.CSTNode, "__post_init__")
try:
    libcst.Name("x").value = "y"
except dataclasses.FrozenInstanceError:
    raise SystemExit(0)
raise SystemExit("nodes that were frozen are frozen")
"""
    )


@pytest.mark.parametrize("source", ["model = torch.nn.Linear(4, 4)", "model = torch.nn.Linear(4, 4).half()"])
def test_a_file_without_findings_needs_no_pydantic(source: str) -> None:
    passes(
        f"""
from sys import modules
from precaudit.static.run import examine
from precaudit.static.files import Found
result = examine(Found("train.py", "train.py"), b'''import torch
with torch.autocast("cuda"):
    {source}
''')
assert "error" not in result, result
assert not {{"pydantic", "rich"}} & set(modules)
"""
    )
