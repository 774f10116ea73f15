"""`precaudit doctor`: says what precaudit finds on this machine, and what would keep a trace from working."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from precaudit import __version__
from precaudit.errors import PrecauditError
from precaudit.shipped import rules_folder


class Answer(NamedTuple):
    """What one check found."""

    good: bool
    text: str


@click.command()
def doctor() -> int:
    """Say what precaudit finds here and what would stop a trace.

    \b
    precaudit doctor
    """
    well = True
    for name, check in CHECKS.items():
        answer = check()
        well &= answer.good
        click.echo(f"{'ok' if answer.good else 'x ':<3} {name:<10} {answer.text}")
    return 0 if well else 1


def _tool() -> Answer:
    return Answer(True, f"precaudit {__version__} on Python {platform.python_version()} ({sys.executable})")


def _torch() -> Answer:
    from precaudit.launch.command import python_for_training

    python = python_for_training(os.environ)
    program = "import importlib.metadata as m, sys; sys.stdout.write(m.version('torch'))"
    try:
        asked = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(False, f"{python} cannot be asked: {error}")
    if asked.returncode:
        return Answer(
            False,
            f'{python} has no torch; activate the environment that has it, or "precaudit trace /path/to/python …"',
        )
    from precaudit.runtime.sitecustomize import OLDEST_TORCH, release

    if release(asked.stdout) < OLDEST_TORCH:
        return Answer(False, f"torch {asked.stdout} in {python} cannot be traced; install torch 2.4 or newer")
    return Answer(True, f"torch {asked.stdout} in {python}")


def _inject() -> Answer:
    from precaudit.launch.bootstrap import TraceSettings, private_folder
    from precaudit.launch.command import python_for_training

    python = python_for_training(os.environ)
    with private_folder(TraceSettings(cwd=os.getcwd())) as private:
        subprocess.run([python, "-c", ""], env=private.environment(os.environ), check=False)
        loaded = private.marks().loaded
    if loaded:
        return Answer(True, "a started Python loads the bootstrap")
    return Answer(False, f'{python} ignores PYTHONPATH; start the training with "python -m precaudit.run"')


def _rules() -> Answer:
    from precaudit import rulebook

    try:
        book = rulebook.load()
    except PrecauditError as error:
        return Answer(False, str(error))
    return Answer(True, f"{len(book.rules)} rules, {len(book.roles)} roles in {rules_folder()}")


def _reports() -> Answer:
    from precaudit import settings
    from precaudit.launch.save import HOME, LATEST, check_writable

    try:
        path = Path(settings.load().output_dir or HOME) / LATEST
        folder = next(p for p in (path.parent, *path.parent.parents) if p.exists())
        check_writable(folder / path.name)
    except PrecauditError as error:
        return Answer(False, f"{error}; --output-dir and PRECAUDIT_OUTPUT_DIR name another folder")
    return Answer(True, f"reports go to {path}")


CHECKS: dict[str, Callable[[], Answer]] = {
    "precaudit": _tool,
    "torch": _torch,
    "injection": _inject,
    "rules": _rules,
    "reports": _reports,
}
