"""Whatever fails inside the trace is a note in the report: the program runs on, to the same bit and the same output."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faulting
import harness
import pytest
from faulting import AT_THE_END, PROGRAM, Failing, files, functions, make_fail, unharmed
from residues import residue

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


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "train.py"
    path.write_text(PROGRAM, encoding="utf-8")
    harness.run(path, traced=True)  # what is imported while a function is made to fail would keep it
    return path


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


@pytest.mark.slow
def test_each_function_that_fails_is_noted_and_disturbs_nothing() -> None:
    """Each 16th of them here, all by `make faults`."""
    command = [sys.executable, faulting.__file__, "--every", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) > 60
    assert [wrong for _, wrong in told if wrong] == []
