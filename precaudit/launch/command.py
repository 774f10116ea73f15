"""Turns what the user typed after `precaudit trace` into the command to start, or says what is wrong with it."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from precaudit.disk import read
from precaudit.errors import UsageError

RUNNERS: Mapping[str, str] = {".sh": "bash", ".bash": "bash", ".zsh": "zsh"}
"""What runs a file with this ending."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command ready to start."""

    argv: tuple[str, ...]
    shown: str
    """As the user would type it: `python train.py --lr 1e-4`."""


def resolve(words: Sequence[str], environment: Mapping[str, str]) -> Command:
    """The command these words mean: a script, `-m module`, or a program on PATH. Raises UsageError, one line."""
    if not words:
        raise UsageError('nothing to trace; name a script or a command: "precaudit trace train.py"')
    first, rest = words[0], list(words[1:])
    if first == "-m":
        if not rest:
            raise UsageError('-m: the module is missing; write "precaudit trace -m package.train"')
        return _python(["-m", *rest], environment)
    if first.startswith("-"):
        raise UsageError(f'{first}: no such option of trace; see "precaudit trace --help"')
    path = Path(first)
    if path.is_dir():
        raise UsageError(
            f"{first}: is a directory; name the script in it, or trace a package with "
            f'"precaudit trace -m {_module_name(path)}"'
        )
    if path.suffix == ".py":
        _must_be_python(path)
        return _python([first, *rest], environment)
    program = shutil.which(first, path=environment.get("PATH")) or _beside_this_python(first)
    if program is not None:
        return Command((program, *rest), " ".join(words))
    if path.is_file():
        runner = RUNNERS.get(path.suffix)
        way_out = (
            f'start it with {runner}: "precaudit trace {runner} {first}"'
            if runner
            else f'name the program that runs it: "precaudit trace PROGRAM {first}"'
        )
        raise UsageError(f"{first}: not a Python script (*.py) and not executable; {way_out}")
    if " " in first and shutil.which(first.split()[0], path=environment.get("PATH")):
        raise UsageError(f'{first}: a command is written without quotes: "precaudit trace {first}"')
    if "/" in first:
        raise UsageError(f"{first}: no such file{_nearly(path)}")
    raise UsageError(f"{first}: no such command on PATH and no such file{_nearly(path)}")


def _must_be_python(path: Path) -> None:
    try:
        source = read(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file{_nearly(path)}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        place = f"{path}:{error.lineno}:{error.offset}" if error.lineno else str(path)
        raise UsageError(f"{place}: not valid Python: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid Python: {error}") from None


def _python(arguments: Sequence[str], environment: Mapping[str, str]) -> Command:
    return Command((python_for_training(environment), *arguments), " ".join(["python", *arguments]))


def python_for_training(environment: Mapping[str, str]) -> str:
    """This Python where it has torch; else the active virtual environment's or PATH's, for precaudit may live apart."""
    if has_torch():
        return sys.executable
    active = environment.get("VIRTUAL_ENV")
    if active:
        for name in ("bin/python", "Scripts/python.exe"):
            candidate = os.path.join(active, name)
            if os.access(candidate, os.X_OK):
                return candidate
    path = environment.get("PATH")
    return shutil.which("python", path=path) or shutil.which("python3", path=path) or sys.executable


def has_torch() -> bool:
    """Whether this Python could import torch, found without importing it."""
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _beside_this_python(name: str) -> str | None:
    """torchrun and its kin, when precaudit was started by its full path and its environment is not on PATH."""
    return None if "/" in name else shutil.which(name, path=os.path.dirname(sys.executable))


def _module_name(path: Path) -> str:
    return ".".join(part for part in path.parts if part.isidentifier()) or "package"


def _nearly(path: Path) -> str:
    """The one file beside it whose name is nearly the same."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
