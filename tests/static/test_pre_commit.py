"""The hooks of .pre-commit-hooks.yaml under the real pre-commit, in a real repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BAD = """import torch

model = torch.nn.Linear(4, 4).bfloat16()
optimizer = torch.optim.AdamW(model.parameters())
"""
CONFIG = {
    "train_batch_size": 8,
    "zero_optimization": {"stage": 2},
    "fp16": {"enabled": True},
    "bf16": {"enabled": True},
}

pytestmark = pytest.mark.slow


def sh(*command: str, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    line = ["git", *names, *command[1:]] if command[0] == "git" else list(command)
    environment = {**os.environ, "PRE_COMMIT_HOME": str(home)}
    environment.pop("GITHUB_ACTIONS", None)
    environment.pop("PYTHONPATH", None)
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A repository whose pre-commit configuration names one with this working tree, and pre-commit's home."""
    home, tool, user = (tmp_path_factory.mktemp(name) for name in ("home", "tool", "user"))
    for name in ("precaudit", "rules"):
        shutil.copytree(ROOT / name, tool / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, tool / name)
    for folder in (tool, user):
        assert sh("git", "init", "-q", cwd=folder, home=home).returncode == 0
    sh("git", "add", "-A", cwd=tool, home=home)
    assert sh("git", "commit", "-qm", "tool", cwd=tool, home=home).returncode == 0
    revision = sh("git", "rev-parse", "HEAD", cwd=tool, home=home).stdout.strip()
    hooks = [{"id": "precaudit"}, {"id": "precaudit-config"}]
    settings = {"repos": [{"repo": str(tool), "rev": revision, "hooks": hooks}]}
    (user / ".pre-commit-config.yaml").write_text(json.dumps(settings))
    sh("git", "add", "-A", cwd=user, home=home)
    assert sh("git", "commit", "-qm", "start", cwd=user, home=home).returncode == 0
    done = sh(sys.executable, "-m", "pre_commit", "install", "--install-hooks", cwd=user, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return user, home


def commit(user: Path, home: Path) -> subprocess.CompletedProcess[str]:
    sh("git", "add", "-A", cwd=user, home=home)
    return sh("git", "commit", "-m", "work", cwd=user, home=home)


def test_the_environment_of_the_hooks_holds_no_torch(workplace: tuple[Path, Path]) -> None:
    _, home = workplace
    packages = {path.name for path in home.glob("repo*/py_env*/lib/python*/site-packages/*")}
    assert "precaudit" in packages
    assert "torch" not in packages


def test_a_commit_without_python_or_config_passes(workplace: tuple[Path, Path]) -> None:
    user, home = workplace
    (user / "notes.txt").write_text("nothing to see\n")
    done = commit(user, home)
    assert done.returncode == 0, done.stderr
    assert "no files to check" in done.stderr


def test_a_commit_with_a_mistake_is_refused_and_a_mended_one_passes(workplace: tuple[Path, Path]) -> None:
    user, home = workplace
    (user / "train.py").write_text(BAD)
    (user / "ds.json").write_text(json.dumps(CONFIG, indent=1))
    done = commit(user, home)
    assert done.returncode == 1
    assert "PA301" in done.stderr
    assert "PA802" in done.stderr
    (user / "train.py").write_text(BAD.replace(".bfloat16()", "") + "dtype = torch.bfloat16\n")
    (user / "ds.json").write_text(json.dumps({**CONFIG, "fp16": {"enabled": False}}, indent=1))
    done = commit(user, home)
    assert done.returncode == 0, done.stderr


def test_excluded_files_and_a_hook_that_always_runs_pass(workplace: tuple[Path, Path]) -> None:
    user, home = workplace
    (user / "pyproject.toml").write_text('[tool.precaudit]\nexclude = ["old/"]\n')
    (user / "old").mkdir()
    (user / "old" / "train.py").write_text(BAD)
    done = commit(user, home)
    assert done.returncode == 0, done.stderr
