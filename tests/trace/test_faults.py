"""Whatever fails inside the trace is a note in the report: the program runs on, to the same bit and the same output."""

from __future__ import annotations

import functools
import importlib
import itertools
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import harness
import pytest
from conftest import residue

import precaudit.runtime

PROGRAM = """
import torch
from torch import nn

def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).to(torch.bfloat16)
    model.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(6):
        for half in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.randint(0, 3, (4,)))
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, p in zip(average, model.parameters()):
                kept.lerp_(p, 0.1)
            model.seen += 1
        print(step, loss.item())

main()
"""
INSIDE = (
    "user_site", "user_frame", "site_of", "storage_key", "local", "parameters", "state_tensors", "in_graph", "walk",
)  # fmt: skip
"""Functions that taps, trackers and watchers call everywhere."""


@pytest.mark.parametrize("name", INSIDE)
def test_a_part_that_fails_is_noted_and_disturbs_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM, encoding="utf-8")
    plain = harness.run(path)
    harness.run(path, traced=True)  # everything is imported

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("made to fail")

    places = [
        module for key, module in sys.modules.items() if key.startswith("precaudit.runtime") and name in vars(module)
    ]
    assert places
    for module in places:
        monkeypatch.setattr(module, name, fails)
    traced = harness.run(path, traced=True)
    assert (traced.error, traced.stdout, traced.digest) == (plain.error, plain.stdout, plain.digest)
    assert traced.report is not None
    assert any("made to fail" in note for note in traced.report.coverage.notes)


FOLDERS = ("taps", "trackers", "watchers", "frameworks", "exact", "process")
FLOOR = {
    "process.peers": "a rank that cannot tell the others where it is may not go on as if it had",
    "process.rankfile:RankFile.content": "every part of it may fail, and does below; it is what the test reads",
}
"""What is not made to fail, and why."""
AT_THE_END = ("_take_out", "remove", "forget_all", "window_over", "_at_exit", "_stop", "stopped", "freeze", "close")
"""Functions that run once the report is written, and take out what these tests want gone."""


class Failing:
    """Stands for a function: counts its calls, and fails from the one after `fine` on."""

    def __init__(self, fine: int) -> None:
        self.calls = 0
        self.fine = fine

    @property
    def failed(self) -> bool:
        return self.calls > self.fine

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.failed:
                raise ZeroDivisionError("made to fail")
            return original(*args, **kwargs)

        return failing


def files() -> list[str]:
    """The files of the folders, as they are found: one that is added tomorrow is among them."""
    found = []
    for folder in FOLDERS:
        package = importlib.import_module(f"{precaudit.runtime.__name__}.{folder}")
        names = [each.name for each in pkgutil.iter_modules(package.__path__)]
        found += [f"{folder}.{name}" for name in names if f"{folder}.{name}" not in FLOOR]
    return found


def functions(file: str) -> Iterator[tuple[str, Any, str]]:
    """(title, owner, name) of each function and method of a file, but for constructors and their like."""
    module = importlib.import_module(f"{precaudit.runtime.__name__}.{file}")
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            yield f"{file}:{name}", None, name
        elif isinstance(value, type):
            for inner, method in list(vars(value).items()):
                title = f"{file}:{name}.{inner}"
                callable_ = isinstance(method, FunctionType | staticmethod | classmethod | property)
                if callable_ and not inner.startswith("__") and title not in FLOOR:
                    yield title, value, inner


def make_fail(monkeypatch: pytest.MonkeyPatch, file: str, owner: Any, name: str, failing: Failing) -> None:
    if owner is None:
        original = vars(importlib.import_module(f"{precaudit.runtime.__name__}.{file}"))[name]
        for module in [m for key, m in sys.modules.items() if key.startswith("precaudit.runtime")]:
            for held, value in list(vars(module).items()):
                if value is original:
                    monkeypatch.setattr(module, held, failing.around(original))
        return
    raw = vars(owner)[name]
    if isinstance(raw, property):
        assert raw.fget is not None
        monkeypatch.setattr(owner, name, property(failing.around(raw.fget)))
    elif isinstance(raw, staticmethod | classmethod):
        monkeypatch.setattr(owner, name, type(raw)(failing.around(raw.__func__)))
    else:
        monkeypatch.setattr(owner, name, failing.around(raw))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "train.py"
    path.write_text(PROGRAM, encoding="utf-8")
    harness.run(path, traced=True)  # what is imported while a function is made to fail would keep it
    return path


@functools.cache
def plain(path: Path) -> harness.Outcome:
    return harness.run(path)


def unharmed(path: Path, title: str, failing: Failing, **settings: Any) -> list[str]:
    """Traces the program, and says what is wrong: it went another way, or the report does not tell of the fault."""
    wrong = []
    traced, untraced = harness.run(path, traced=True, **settings), plain(path)
    if (traced.error, traced.stdout, traced.digest) != (untraced.error, untraced.stdout, untraced.digest):
        wrong.append(f"{title}: the program went another way: {traced.error}")
    assert traced.report is not None
    said = any("made to fail" in note for note in traced.report.coverage.notes)
    if failing.failed and not said and title.rpartition(".")[2] not in AT_THE_END:
        wrong.append(f"{title}: failed {failing.calls} times, and the report does not say so")
    return wrong


@pytest.mark.parametrize("file", files())
def test_a_file_of_which_everything_fails_is_noted_and_disturbs_nothing(
    script: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(0)
    for title, owner, name in functions(file):
        if title.rpartition(".")[2] not in AT_THE_END:
            make_fail(monkeypatch, file, owner, name, failing)
    assert unharmed(script, file, failing) == []


def test_a_patch_that_fails_leaves_none_behind(script: Path, untouched: dict[str, Any]) -> None:
    """The first patch, then the second, and so on: those of its part that were in already are taken out."""
    for number in itertools.count():
        failing = Failing(number)
        with pytest.MonkeyPatch.context() as patches:
            make_fail(patches, "patching", None, "patch", failing)
            assert unharmed(script, "patching:patch", failing) == []
        assert residue() == untouched
        if not failing.failed:
            break
    assert number > 20
