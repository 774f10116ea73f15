"""Makes each function of the trace fail, and says what that did to a program.

    python tests/faulting.py [--every N]     one line of JSON for each function (each N-th): [title, what is wrong]

torch is imported once; each function is made to fail in a process of its own, from its first call on and, where that
was fine, from its third.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import harness
import pytest
from residues import residue

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


FOLDERS = ("taps", "trackers", "watchers", "frameworks", "exact", "process")
FLOOR = {
    "process.peers": "a rank that cannot tell the others where it is may not go on as if it had",
    "process.rankfile:RankFile.content": "every part of it may fail, and does below; it is what the test reads",
    "taps.ops:OpTap.plan": "a guard: what it calls may fail",
    "taps.ops:OpTap.unasked": "a guard",
    "taps.ops:OpTap.look_before": "a guard",
    "taps.ops:OpTap.look_after": "a guard",
    "taps.ops:OpTap.phase": "a guard",
    "taps.ops:OpTap.is_wanted": "a guard",
    "taps.ops:OpTap.before": "a guard",
    "taps.ops:OpTap.react": "a guard",
    "taps.ops:OpTap.refused": "a guard",
    "taps.optimizers:StepTap._before": "a guard",
    "taps.optimizers:StepTap._after": "a guard",
}
"""What is not made to fail, and why. A guard does nothing but to call others, and to note what they raise."""
AT_THE_END = (
    "_take_out",
    "remove",
    "forget_all",
    "window_over",
    "_at_exit",
    "_stop",
    "stopped",
    "freeze",
    "close",
)
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


def each(titles: list[tuple[str, str, Any, str]], path: Path) -> Iterator[tuple[str, list[str]]]:
    """(title, what is wrong) of functions of which one fails after another."""
    before = residue()
    for title, file, owner, name in titles:
        yield title, _in_a_child(functools.partial(_one, title, file, owner, name, path, before))


def _one(title: str, file: str, owner: Any, name: str, path: Path, before: dict[str, Any]) -> list[str]:
    wrong = []
    for fine in (0, 2):
        failing = Failing(fine)
        with pytest.MonkeyPatch.context() as patches:
            make_fail(patches, file, owner, name, failing)
            wrong += unharmed(path, title, failing)
        after = residue()
        left = [key for key in before if after[key] != before[key]]
        if left and title.rpartition(".")[2] not in AT_THE_END:
            wrong.append(f"{title}: left {left}")
        if wrong or not failing.failed:
            break
    return wrong


def _in_a_child(work: Callable[[], list[str]]) -> list[str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            told = work()
        except BaseException as error:
            told = [f"nothing came of it: {error!r}"]
        with os.fdopen(write, "w") as answer:
            json.dump(told, answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(text)) if text else ["its process was killed"]


def every_function() -> list[tuple[str, str, Any, str]]:
    """(title, file, owner, name) of every function but `install`, of which each patch fails in a test of its own."""
    found = [(title, file, owner, name) for file in files() for title, owner, name in functions(file)]
    return [each for each in found if each[3] != "install"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_text(PROGRAM, encoding="utf-8")
        harness.run(path, traced=True)  # what is imported while a function is made to fail would keep it
        chosen = [each for each in every_function() if asked.only in each[0]]
        for title, wrong in each(chosen[:: asked.every], path):
            print(json.dumps([title, wrong]), flush=True)


if __name__ == "__main__":
    main()
