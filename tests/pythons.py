"""`make test-pythons`: what needs no torch, on each Python that is installed, with the newest and the oldest libraries.

Each gets a virtual environment below .venv-pythons. There `precaudit check` reads all fixtures, and has to find what it
finds here; the other commands have to start. A Python that is not installed is named and left out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ENVIRONMENTS = ROOT / ".venv-pythons"


def main() -> int:
    wanted = findings(Path(sys.executable))
    failed = 0
    for version in VERSIONS:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: not installed, left out", flush=True)
            continue
        for oldest in (False, True):
            title = f"Python {version}, {'oldest' if oldest else 'newest'} libraries"
            made = environment(python, version, oldest)
            if isinstance(made, str):
                print(f"{title}: cannot be installed: {made}", flush=True)
                failed += not oldest  # an old library may have no build for a new Python
                continue
            wrong = differences(made, wanted)
            print(f"{title}: {wrong or f'{len(wanted)} findings, the same'}", flush=True)
            failed += bool(wrong)
    return int(failed > 0)


def interpreter(version: str) -> str | None:
    """A Python of this version: on PATH, pyenv's, or uv's."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for command in ([f"python{version}"], *([str(one)] for one in of_pyenv), ["uv", "python", "find", version]):
        if shutil.which(command[0]) is None:
            continue
        show = [*command, "-c", "import sys; print(sys.executable)"] if command[0] != "uv" else command
        done = subprocess.run(show, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def environment(python: str, version: str, oldest: bool) -> Path | str:
    """The Python of an environment with precaudit in it; why there is none, where it cannot be installed."""
    folder = ENVIRONMENTS / f"{version}{'-oldest' if oldest else ''}"
    made = folder / "bin" / "python"
    if (folder / "installed").exists():
        return made
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    pins = pinned() if oldest else []
    done = subprocess.run(
        [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
         "--no-binary=precaudit", str(ROOT), *pins], capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    (folder / "installed").touch()
    return made


def pinned() -> list[str]:
    """The dependencies at the oldest version that pyproject.toml allows: "click==8.1.*"."""
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert block is not None
    return [f"{name}=={version}.*" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', block[1]) if name != "tomli"]


def findings(python: Path) -> set[tuple[str, str, int]]:
    """What check finds in the fixtures: rule, file and line."""
    command = [python, "-m", "precaudit", "check", "fixtures", "--no-cache", "--output-format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    return {(one["rule"], one["path"], one["line"]) for one in report["findings"]}


def differences(python: Path, wanted: set[tuple[str, str, int]]) -> str:
    """What this Python does otherwise; "" for nothing."""
    for words in (["rules"], ["checkpoint", "--help"], ["report", "--help"], ["diff", "--help"], ["trace", "--help"]):
        done = subprocess.run([python, "-m", "precaudit", *words], cwd="/", capture_output=True, text=True)
        if done.returncode:
            return f"precaudit {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-200:]}"
    try:
        found = findings(python)
    except ValueError as error:
        return f"precaudit check: no report: {error}"
    missing, more = sorted(wanted - found)[:3], sorted(found - wanted)[:3]
    return "" if found == wanted else f"missing {missing}, more {more}"


if __name__ == "__main__":
    sys.exit(main())
