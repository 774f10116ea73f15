"""What a check costs: ratios of CPU time to `ast.parse` of the same files, never seconds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from precaudit.static.files.cache import Cache
from precaudit.static.files.discovery import Excluder, discover
from precaudit.static.files.run import examine_all
from precaudit.static.reach.words import may_hold_a_finding

TORCH = Path(torch.__file__).parent
ROOT = Path(__file__).parents[2]
LIBRARY = [str(TORCH / part) for part in ("nn", "optim", "amp")]
"""Real sources, some of which hold every kind of word that a finding can start from."""


def least(run: Callable[[], object], repeats: int = 2) -> float:
    """The least CPU seconds that it took: a busy machine only ever adds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def test_a_library_costs_at_most_twice_what_parsing_it_with_ast_does() -> None:
    files = discover(LIBRARY, Excluder(TORCH, (), False)).found
    sources = [item.path.read_bytes() for item in files if item.path.suffix == ".py"]
    assert len(sources) > 100
    examine_all(files, Cache(None), jobs=1)
    parsed = least(lambda: [ast.parse(source) for source in sources])
    checked = least(lambda: examine_all(files, Cache(None), jobs=1))
    assert checked < 2 * parsed, f"{checked / parsed:.2f} times ast.parse"


def test_files_that_hold_nothing_cost_a_fifth_of_parsing_them_with_ast() -> None:
    files = discover([str(TORCH / "distributed")], Excluder(TORCH, (), False)).found
    files = [item for item in files if not may_hold_a_finding(item.path.read_bytes())]
    assert len(files) > 100
    sources = [item.path.read_bytes() for item in files if item.path.suffix == ".py"]
    parsed = least(lambda: [ast.parse(source) for source in sources])
    checked = least(lambda: examine_all(files, Cache(None), jobs=1))
    assert checked < parsed / 5, f"{checked / parsed:.2f} times ast.parse"


def test_a_second_check_of_a_tree_imports_neither_libcst_nor_pydantic(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.precaudit]\n")
    (tmp_path / "model.py").write_text("import torch\n\nmodel = torch.nn.Linear(4, 4).to(torch.float16)\n")
    (tmp_path / "plain.py").write_text("import torch\n\nmodel = torch.nn.Linear(4, 4)\n")
    code = (
        "import sys\nfrom precaudit.cli import run\nassert run(['check', '--jobs', '1']) == 0\n"
        "print(*sorted({'libcst', 'pydantic', 'rich', 'precaudit.static.analyze'} & set(sys.modules)))\n"
    )
    loaded = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "GITHUB_ACTIONS": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        loaded.append(done.stdout.splitlines()[-1].split())
    assert "precaudit.static.analyze" in loaded[0]
    assert loaded[1] == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_number_of_processes_changes_no_result(jobs: int) -> None:
    files = discover([str(ROOT / "fixtures" / name) for name in ("PA101", "PA202")], Excluder(ROOT, (), False)).found
    alone = examine_all(files, Cache(None), jobs=1)
    assert [item for item, _ in alone] == files
    assert examine_all(files, Cache(None), jobs=jobs) == alone
    assert sum(bool(result.get("facts")) for _, result in alone) > 4
