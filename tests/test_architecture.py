"""What docs/architecture.md and docs/glossary.md say of the code is what the code does: both are written from it.

`python tests/test_architecture.py` writes them anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import precaudit
from precaudit.model import attributes, evidence, vocabulary

PACKAGE = Path(precaudit.__file__).parent
DOCS = PACKAGE.parent / "docs"
ARCHITECTURE, GLOSSARY = DOCS / "architecture.md", DOCS / "glossary.md"

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 2)
model.half()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = model(torch.randn(3, 4).half()).float().sum()
loss.backward()
optimizer.step()
"""


# -- which files see an event


class Follow:
    """Notes each file of ours in the order in which the program first comes to it."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PACKAGE)) and not name.endswith("__init__.py"):
            self.files[os.path.relpath(name, PACKAGE)] = None


def followed(act: Callable[[], object]) -> list[str]:
    """The files of ours that `act` runs through."""
    follow = Follow()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setprofile(follow)
        try:
            act()
        finally:
            sys.setprofile(None)
    return list(follow.files)


def traced_files() -> dict[str, list[str]]:
    """`half` and `step` of a traced program -> the files that see it; the step is the second that is traced."""
    import torch
    from torch import nn

    from precaudit.runtime import session

    found: dict[str, list[str]] = {}
    torch.manual_seed(0)
    begun = session.start({"keep_going": True, "skip": 1, "steps": 4, "cwd": str(PACKAGE.parent)})
    try:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        found["half"] = followed(model.half)
        for step in range(4):
            model(torch.randn(3, 4).half()).float().sum().backward()
            if step == 2:
                found["step"] = followed(optimizer.step)
            else:
                optimizer.step()
            optimizer.zero_grad()
    finally:
        begun.remove()
    return found


def checked_files() -> list[str]:
    """The files that read a script with `.half()`."""

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_text(SCRIPT, encoding="utf-8")
        run_check(path)  # what is read once in a process is read
        return [file for file in followed(lambda: run_check(path)) if file.startswith("static/") or file == "judge.py"]


def run_check(path: Path) -> None:
    from click.testing import CliRunner

    from precaudit.commands.check import check

    CliRunner().invoke(check, ["--no-cache", "--jobs", "1", str(path)])


def sentence(file: str) -> str:
    """A file in one sentence: the first line of its docstring."""
    text = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def as_list(files: list[str]) -> str:
    return "\n".join(f"1. `{file}`: {sentence(file)}" for file in files)


# -- the glossary


def members(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The names that a class assigns or annotates, each with the docstring below it."""
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name):
            doc = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            yield target.id, " ".join(str(doc).split())


def classes(module: Any) -> dict[str, ast.ClassDef]:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def glossary() -> str:
    """docs/glossary.md, from the enums and the typed attributes."""
    said = classes(attributes)
    roles = dict(members(classes(vocabulary)["Role"]))
    kinds = dict(members(classes(vocabulary)["Kind"]))
    lines = [
        "# Glossary",
        "",
        "Written from `precaudit/model/` by `python tests/test_architecture.py`.",
        "",
        "## Roles",
        "",
    ]
    lines += [f"- `{vocabulary.Role[name].value}`: {doc}" for name, doc in roles.items()]
    lines += ["", "## Kinds of Facts, and what each says beyond role and dtype", ""]
    for name, doc in kinds.items():
        kind = vocabulary.Kind[name]
        lines.append(f"- `{kind.value}`: {doc}")
        lines += _attributes(attributes.ATTRIBUTES[kind], said)
    lines += ["", "Any Fact may say, for who reads the JSON:", "", *_attributes(attributes.Context, said, "")]
    lines += ["", "## Evidence", ""]
    for name, one in evidence.EVIDENCE.items():
        worse = "; the smaller is the worse" if one.smaller_is_worse else ""
        lines.append(f"- `{name}` ({one.unit.value}{worse}): {one.sentence.format('…')}")
    return "\n".join(lines) + "\n"


def _attributes(holder: type, said: dict[str, ast.ClassDef], indent: str = "  ") -> Iterator[str]:
    docs, hints = dict(members(said[holder.__name__])), get_type_hints(holder)
    for key, hint in hints.items():
        values = " | ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else hint.__name__
        yield f"{indent}- `{key}` ({values}){': ' + docs[key] if docs[key] else ''}"


# -- the pages


def architecture(page: str) -> str:
    """The page with its three lists written anew."""
    traced_files()
    found = {**traced_files(), "check": checked_files()}
    for name, files in found.items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda m, f=files: f"{m[1]}{as_list(f)}\n{m[2]}",
            page,
            flags=re.DOTALL,
        )
    return page


def test_the_glossary_is_what_the_enums_say() -> None:
    assert GLOSSARY.read_text(encoding="utf-8") == glossary(), "run python tests/test_architecture.py"


def test_a_step_and_a_cast_go_through_the_files_that_the_page_names() -> None:
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert page == architecture(page), "run python tests/test_architecture.py"


@pytest.mark.parametrize("page", [ARCHITECTURE, *sorted((DOCS / "decisions").glob("*.md"))], ids=lambda p: p.stem)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:runtime|static|model|launch|report|checkpoint)/[\w/]*(?:\.py)?)`", text):
        assert (PACKAGE / name).exists(), f"{page.name} names {name}"


if __name__ == "__main__":
    GLOSSARY.write_text(glossary(), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
