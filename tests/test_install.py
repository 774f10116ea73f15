"""What is installed is what was built: one version everywhere, a wheel and an sdist that a fresh environment takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from precaudit import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_changelog_and_the_recipe_have_this_version() -> None:
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == __version__
    assert len(sections) == len(set(sections))
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == __version__


def test_the_recipe_asks_for_what_the_wheel_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    asked = {need.replace(" ", "") for need in recipe["requirements"]["run"] if not need.startswith("python ")}
    assert asked == {need.partition(";")[0].strip() for need in PROJECT["dependencies"]}


def test_every_extra_for_users_is_on_the_page() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`precaudit\[(\w+)\]`", page)) == set(PROJECT["optional-dependencies"]) - {
        "docs",
        "frameworks",
        "test",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_on_the_page_is_a_script(shell: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert f"_PRECAUDIT_COMPLETE={shell}_source precaudit" in page
    made = run(sys.executable, "-c", MAIN, cwd=tmp_path, _PRECAUDIT_COMPLETE=f"{shell}_source")
    assert f"_PRECAUDIT_COMPLETE={shell}_complete" in made.stdout


MAIN = "from precaudit.cli import main; main()"


@pytest.mark.parametrize(
    ("words", "index", "offered"),
    [("precaudit tra", "1", "trace"), ("precaudit trace --keep", "2", "--keep-going")],
)
def test_completion_offers_commands_and_options(words: str, index: str, offered: str, tmp_path: Path) -> None:
    done = run(
        sys.executable, "-c", MAIN, cwd=tmp_path,
        _PRECAUDIT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=index,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"plain,{offered}"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, in a git repository of its own without a tag."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("precaudit", "rules", "docs", "skills"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "hatch_build.py", "llms.txt"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return folder


def git(folder: Path, *words: str) -> None:
    done = run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_wheel_and_sdist_pass_twine_and_install_into_a_fresh_environment(project: Path, tmp_path: Path) -> None:
    """The sdist holds all that its own wheel needs: python -m build makes the wheel from it."""
    built = run(sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), cwd=project)
    assert built.returncode == 0, built.stdout + built.stderr
    files = sorted((tmp_path / "dist").iterdir())
    assert [file.name for file in files] == [
        f"precaudit-{__version__}-py3-none-any.whl",
        f"precaudit-{__version__}.tar.gz",
    ]
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    for file in files:
        home = tmp_path / file.suffix
        assert run(sys.executable, "-m", "venv", str(home), cwd=tmp_path).returncode == 0
        installed = run(str(home / "bin" / "pip"), "install", "-q", str(file), cwd=tmp_path, PYTHONPATH="")
        assert installed.returncode == 0, installed.stderr
        tool = str(home / "bin" / "precaudit")
        assert run(tool, "--version", cwd=tmp_path, PYTHONPATH="").stdout == f"precaudit {__version__}\n"
        assert "PA301" in run(tool, "rules", "PA301", cwd=tmp_path, PYTHONPATH="").stdout
        found = run(tool, "check", str(ROOT / "fixtures/PA202/bad.py"), cwd=tmp_path, PYTHONPATH="")
        assert found.returncode == 1, found.stdout + found.stderr


@pytest.mark.slow
def test_a_tag_of_another_version_builds_nothing(project: Path, tmp_path: Path) -> None:
    git(project, "tag", "v9.9.9")
    refused = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), cwd=project)
    assert refused.returncode != 0
    told = refused.stdout + refused.stderr
    assert (
        f"precaudit/__init__.py: __version__ is {__version__}, and this commit is tagged v9.9.9; "
        f"set the version, or tag the commit v{__version__}"
    ) in " ".join(told.split())
    git(project, "tag", f"v{__version__}")
    assert run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), cwd=project).returncode == 0
