"""Finds the file of the same project that an import names: beside it, in a package, further up, behind re-exports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from precaudit.disk import read

MAX_FOLDERS = 4
"""How far up the folder may be in which a script is started."""
MAX_RE_EXPORTS = 3
ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg", "requirements.txt")
"""What stands in the folder that a project's absolute imports count from."""
INSTALLED = ("site-packages", "dist-packages")
LIBRARIES = frozenset(
    """
    torch torchvision torchaudio torchtune torchtitan numpy transformers accelerate lightning pytorch_lightning
    deepspeed peft bitsandbytes trl timm diffusers datasets apex megatron transformer_engine fairscale colossalai
    """.split()
)
"""What is known by what it does, not by its files, also where it is the project under check."""
FROM = re.compile(rb"^from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^()]*\)|[^\n#(]*)", re.MULTILINE)
IMPORT = re.compile(rb"^import[ \t]+([\w.]+)", re.MULTILINE)


def locate(file: str, name: str, level: int) -> str | None:
    """The path of the module that `from <level dots><name> import` names in this file."""
    parts = name.split(".") if name else []
    if level:
        folder = os.path.dirname(file)
        for _ in range(level - 1):
            folder = os.path.dirname(folder)
        return _module(folder, parts, file)
    beside = os.path.dirname(file)
    found = _module(beside, parts, file) if parts else None
    if found is not None or not parts or parts[0] in LIBRARIES:
        return found
    return next((path for folder in _above(beside) if (path := _module(folder, parts, file)) is not None), None)


def _module(folder: str, parts: list[str], file: str) -> str | None:
    path = os.path.join(folder, *parts)
    package = os.path.join(path, "__init__.py")
    for candidate in (f"{path}.py", package) if parts else (package,):
        if candidate != file and os.path.isfile(candidate):
            return candidate
    return None


@lru_cache(maxsize=1024)
def _above(folder: str) -> tuple[str, ...]:
    """The folder that holds the outermost package; the folders up to a project's root, and the `src` in each."""
    top = folder
    for _ in range(MAX_FOLDERS):
        if not os.path.isfile(os.path.join(top, "__init__.py")):
            break
        top = os.path.dirname(top)
    if os.path.basename(top) in INSTALLED:
        return ()
    packages, found = [top] if top != folder else [], []
    for _ in range(MAX_FOLDERS):
        is_root = any(os.path.exists(os.path.join(folder, name)) for name in ROOTS)
        found += [folder, os.path.join(folder, "src")]
        if is_root:
            return (*packages, *found)
        folder = os.path.dirname(folder)
        if os.path.basename(folder) in INSTALLED:
            break
    return tuple(packages)


class Import(NamedTuple):
    """An import at the top level of a file: `from <level dots><module> import there as here, …`."""

    level: int
    module: str
    names: tuple[tuple[str, str], ...]
    """(name there, name here); `*` for all, none for a module as a whole."""


@lru_cache(maxsize=512)
def imported(raw: bytes) -> tuple[Import, ...]:
    """What a file imports at its top level."""
    found = []
    for match in FROM.finditer(raw):
        names = [part.split() for part in match[3].strip(b"()").decode("latin-1").split(",")]
        pairs = tuple((words[0], words[-1]) for words in names if words)
        found.append(Import(len(match[1]), match[2].decode("latin-1"), pairs))
    found += [Import(0, match[1].decode("latin-1"), ()) for match in IMPORT.finditer(raw)]
    return tuple(found)


def origins(path: str, name: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(path, name there) of the modules that a package's re-exports lead to from a name."""
    if depth >= MAX_RE_EXPORTS:
        return
    try:
        raw = read(path)
    except OSError:
        return
    for level, module, names in imported(raw):
        for there, here in names:
            if here == name or there == "*":
                target = locate(path, module, level)
                if target is not None:
                    original = name if there == "*" else there
                    yield target, original
                    yield from origins(target, original, depth + 1)
