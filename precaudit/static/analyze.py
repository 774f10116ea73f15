"""Runs the interpreter over one Python file and the siblings it imports, and gives back Facts."""

from __future__ import annotations

import gc
import os
import re
import sys
from pathlib import Path

from precaudit.model.vocabulary import Fact
from precaudit.static import detectors
from precaudit.static.cache import digest
from precaudit.static.decoding import SourceError, decode
from precaudit.static.language.heap import Store
from precaudit.static.language.scopes import OutOfBudget
from precaudit.static.language.values import ModuleRef
from precaudit.static.overlays.torch import conclusions
from precaudit.static.overlays.torch_model import Torch
from precaudit.static.prefilter import may_hold_a_finding
from precaudit.static.reading import read
from precaudit.static.source import Source

WORD = re.compile(r"[A-Za-z_]\w*")
RECURSION_LIMIT = 4000
"""A call that is followed takes about a dozen frames of ours."""
MAX_SIBLINGS = 12
MAX_FOLDERS = 4
"""How far up the folder may be in which a script is started."""
MAX_SIBLING_BYTES = 60_000
"""A module beside a script is read with it; of a package only small modules that hold a low dtype themselves."""


class Siblings:
    """Finds and runs the modules of the same project that a file imports."""

    def __init__(self, torch: Torch) -> None:
        self.torch = torch
        self.loaded: dict[Path, ModuleRef | None] = {}
        self.hashes: list[list[str]] = []

    def find(self, source: Source, name: str, level: int) -> ModuleRef | None:
        """The module that `from <level dots><name> import` names, if its file stands beside this one."""
        if source.file is None:
            return None
        folder = source.file.parent
        for _ in range(level - 1):
            folder = folder.parent
        if not name or level > 1:
            return None
        path = folder.joinpath(*name.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate in self.loaded:
                return self.loaded[candidate]
            if candidate != source.file and os.path.isfile(candidate):
                return self._load(candidate, source, level)
        return None

    def read(self, source: Source, name: str) -> bytes | None:
        """The content of a file that a script names, sought beside the script and in the folders above it."""
        if source.file is None or Path(name).is_absolute():
            return None
        for folder in list(source.file.parents)[:MAX_FOLDERS]:
            try:
                raw = read(folder / name)
            except OSError:
                continue
            self.hashes.append([str(folder / name), digest(raw)])
            return raw
        return None

    def _load(self, path: Path, source: Source, level: int) -> ModuleRef | None:
        self.loaded[path] = None
        if len(self.loaded) > MAX_SIBLINGS:
            return None
        try:
            raw = read(path)
            self.hashes.append([str(path), digest(raw)])
            if len(raw) > MAX_SIBLING_BYTES or (level and not may_hold_a_finding(raw)):
                return None
            beside = str(Path(source.path).with_name(path.name)) if path.parent == source.file_folder else str(path)
            found = Source(beside, decode(raw), path, WORD.findall(source.text))
        except (OSError, SourceError):
            return None
        store: Store = {}
        self.loaded[path] = reference = ModuleRef(found, store)
        self.torch.interpreter.run_module(found, store)
        return reference


def analyze(source: Source) -> tuple[list[Fact], list[list[str]]]:
    """The Facts that this file proves, and [path, content hash] of each sibling module they also rest on."""
    torch = Torch()
    detectors.attach(torch.bus)
    interpreter = torch.interpreter
    siblings = Siblings(torch)
    interpreter.find_module = siblings.find
    torch.read_beside = siblings.read
    store: Store = {}
    enabled, limit = gc.isenabled(), sys.getrecursionlimit()
    gc.disable()
    sys.setrecursionlimit(max(limit, RECURSION_LIMIT))
    try:
        try:
            interpreter.run_module(source, store)
        except (OutOfBudget, RecursionError):
            interpreter.reset()
        interpreter.run_rest(source, store)
        if source.misread:
            return analyze(Source(source.path, source.text, source.file, whole=True))
        conclusions.finish(torch)
        torch.bus.finish(torch)
        return torch.facts.resolve(), siblings.hashes
    finally:
        interpreter.forget()
        sys.setrecursionlimit(limit)
        if enabled:
            gc.enable()
