"""A framework of the trace is a new file in frameworks/: nothing that exists is edited."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_oracle import traced

from precaudit.model.vocabulary import Role
from precaudit.runtime import frameworks

LIBRARY = """
from torch import nn


class Wrapper(nn.Module):
    def __init__(self, inner, precision):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)
"""
FRAMEWORK = '''
"""Invented: wraps a module, and forgets the precision that it was given."""

from precaudit.model.vocabulary import Role

from ..guard import Guard
from ..patching import patch
from ..sites import user_site
from ..trackers.claims import Declaration
from ..trackers.modules import Modules
from . import Framework, imported


class Invented(Framework):
    title = "Invented"
    order = 1
    classes = ("invented_library",)
    awaits = ("invented_library",)
    inserts = frozenset({"inner"})

    def __init__(self, guard: Guard, modules: Modules) -> None:
        self._guard, self._modules, self._written = guard, modules, []

    def install(self):
        return [patch(kind, "__init__", self._around_init) for kind in imported("invented_library", "Wrapper")]

    def _around_init(self, original):
        def __init__(wrapper, inner, precision):
            self._guard("a Wrapper", lambda: self._written.append((precision, user_site())))
            original(wrapper, inner, precision)

        return __init__

    def declares(self):
        for precision, site in self._written:
            yield Declaration(Role.MATMUL_COMPUTE, precision, f"Wrapper({precision})", site)
'''


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "site-packages"  # as ours and theirs are there: no line of the user's
    folder.mkdir()
    (folder / "invented.py").write_text(FRAMEWORK)
    (folder / "invented_library.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(frameworks, "__path__", [*frameworks.__path__, str(folder)])
    ours = f"{frameworks.__name__}.invented"
    for name in (ours, "invented_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in (ours, "invented_library"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("invented")
def test_a_framework_from_another_folder_is_met_asked_and_taken_out() -> None:
    before: list[Any] = []

    def train() -> None:
        library = importlib.import_module("invented_library")
        before.append(library.Wrapper.__init__)
        model = library.Wrapper(torch.nn.Linear(8, 8).bfloat16(), "float32")
        optimizer = torch.optim.SGD(model.parameters(), 1e-5)
        for _ in range(4):
            model(torch.randn(4, 8).bfloat16()).float().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    report = traced(train)
    assert report.coverage.setup["frameworks"] == "Invented"
    (told,) = [finding for finding in report.findings if finding.rule == "PA504"]
    assert (told.role, Path(told.path or "").name) == (Role.MATMUL_COMPUTE, Path(__file__).name)
    (lost,) = [finding for finding in report.findings if finding.rule == "PA101"]
    assert {part.name for part in lost.parts} <= {"weight", "bias"}  # not "inner.weight"
    patched, now = before[0], sys.modules["invented_library"].Wrapper.__init__
    assert patched.__wrapped__ is now
