"""A file that takes too much, or on which a parser dies, is one line, and the others are examined."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from precaudit.static.files import run, workers
from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Found
from precaudit.static.files.workers import Limits

BAD = "import torch\nmodel = torch.nn.Linear(4, 4).bfloat16()\nopt = torch.optim.AdamW(model.parameters())\n"


def dies() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def aborts() -> None:
    os.abort()


def loops() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def sleeps_in_native_code() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_IGN)  # as a parser does that never comes back to Python
    while True:
        pass


def takes() -> None:
    held = []
    while True:
        held.append(bytearray(10_000_000))


@pytest.mark.parametrize("jobs", [0, 2])
@pytest.mark.parametrize(
    ("does", "said"),
    [
        (dies, "its parser died of it (SIGSEGV); exclude it"),
        (aborts, "takes more than 200 MB of memory to follow; exclude it, or allow more with --file-memory"),
        (takes, "takes more than 200 MB of memory to follow; exclude it, or allow more with --file-memory"),
        (loops, "takes more than 1 s to follow; exclude it, or allow more with --file-seconds"),
        (sleeps_in_native_code, "takes more than 1 s to follow; exclude it, or allow more with --file-seconds"),
    ],
)
def test_the_file_is_named_and_the_others_go_on(
    does: Callable[[], None], said: str, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.examine

    def examine(item: Found, raw: bytes, compiling: bool = True) -> run.Result:
        if "odd" in item.file:
            does()
        return real(item, raw, compiling)

    monkeypatch.setattr(run, "examine", examine)
    for name in ("a.py", "odd.py", "z.py"):
        (tmp_path / name).write_text(BAD)
    found = [Found(str(tmp_path / name), name) for name in ("a.py", "odd.py", "z.py")]
    began = time.monotonic()
    results = {item.shown: result for item, result in run.examine_all(found, Cache(None), jobs, (1, 200))}
    assert results["odd.py"] == {"error": said}
    assert len(results["a.py"]["facts"]) == len(results["z.py"]["facts"]) > 0
    assert time.monotonic() - began < 60


def test_many_large_results_come_back_in_one_piece() -> None:
    results = workers.each([range(0, 50), range(50, 60), []], lambda n: "x" * n * 10_000, str, Limits())
    assert results == {n: "x" * n * 10_000 for n in range(60)}
