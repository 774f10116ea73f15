"""Under CI=true a skipped test counts as failed; elsewhere it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["one process", "xdist"])
@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_skipped_test_fails_the_run_under_ci(tmp_path: Path, ci: str, code: int, workers: list[str]) -> None:
    for name in ("conftest.py", "residues.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path)
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_part(): pytest.importorskip('no_such_part')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert ("1 skipped tests count as failed" in done.stdout) == bool(code)
