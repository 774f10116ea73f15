"""A torch without one of the private names that precaudit uses: less is seen, or nothing, and the program runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hidden
import pytest
from test_faults import PROGRAM

from precaudit.runtime.torch_private import NEEDED

pytestmark = pytest.mark.slow


def test_a_name_that_this_torch_lacks_costs_coverage_and_never_the_run(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM, encoding="utf-8")
    words = [sys.executable, str(hidden.ROOT / "tests" / "hidden.py"), str(program)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert sorted(told) == hidden.names(), "a process died without a word"
    for name, row in told.items():
        if "stays" in row:
            continue
        if name in NEEDED:
            assert f"has no torch.{name}, which a trace rests on" in row["refused"]
        else:
            assert (row["same"], row["error"]) == (True, ""), row
    taken_away = {name for name, row in told.items() if "stays" not in row}
    assert len(taken_away) > 15
    assert set(NEEDED) - taken_away == {name for name in NEEDED if name.startswith("UntypedStorage")}


LESS = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._meta_registrations":  # about the last thing that torch imports
            del sys.modules["torch._C"]._push_on_torch_dispatch_stack

sys.meta_path.insert(0, Finder())
"""


def test_a_trace_that_cannot_begin_says_which_name_is_missing_and_the_program_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LESS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "precaudit", "trace", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "has no torch._C._push_on_torch_dispatch_stack, which a trace rests on" in " ".join(told.split())
    assert "\n5 " in done.stdout, "the program went to its end"
    assert done.returncode == 3, "precaudit could not do its work"
