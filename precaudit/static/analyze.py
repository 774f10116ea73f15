"""Runs the interpreter over one Python file and the siblings it imports, and gives back Facts."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from functools import cached_property, partial
from pathlib import Path

from precaudit.disk import read
from precaudit.model.vocabulary import Fact
from precaudit.static import detectors, overlays
from precaudit.static.decoding import SourceError, decode
from precaudit.static.files.cache import digest
from precaudit.static.imports import MAX_FOLDERS, locate, origins
from precaudit.static.language.heap import Store
from precaudit.static.language.scopes import OutOfBudget
from precaudit.static.language.values import ModuleRef, Unread, Value
from precaudit.static.named_files import READS, named, says_low
from precaudit.static.overlays.answers import Answers
from precaudit.static.overlays.run import Run
from precaudit.static.reach.relevance import leads_to
from precaudit.static.reach.words import may_hold_a_finding, trains
from precaudit.static.source import Source

WORD = re.compile(r"[A-Za-z_]\w*")
RECURSION_LIMIT = 4000
"""A call that is followed takes about a dozen frames of ours."""
MAX_SIBLINGS, MAX_FAR, MAX_LATE = 12, 6, 6
"""Modules that are run with a file, those run before one that does not stand beside it, those that were left unread."""
MAX_SIBLING_BYTES = 60_000
"""Of one. What stands beside a script is read with it, of a package only small modules that hold a low dtype."""


class Siblings:
    """Finds and runs the modules of the same project that a file imports."""

    def __init__(self, run: Run, source: Source, trains: bool) -> None:
        self.run = run
        self.source = source
        self.trains = trains
        """Whether the file under check trains: for any other, modules in folders above and re-exports are not read."""
        self.loaded: dict[Path, ModuleRef | None] = {}
        self.hashes: dict[str, str] = {}
        self.runs = self.late = 0

    @cached_property
    def low_by_config(self) -> bool:
        """Whether a data file that the script reads says a low dtype, which any module may make a dtype of."""
        if not self.trains or self.source.file is None:
            return False
        for path in named(str(self.source.file), self.source.text.encode("utf-8", "replace")):
            try:
                if says_low(read(path)):
                    return True
            except OSError:
                continue
        return False

    def find(self, source: Source, name: str, level: int) -> ModuleRef | None:
        """The module that `from <level dots><name> import` names, if its file is of the same project."""
        path = locate(str(source.file), name, level) if source.file is not None else None
        return self._module(Path(path), source, level) if path is not None else None

    def find_name(self, source: Source, name: str, level: int, imported: str) -> Value | None:
        """What `from <level dots><name> import <imported>` binds, sought behind what a package re-exports."""
        path = locate(str(source.file), name, level) if source.file is not None else None
        further = origins(path, imported) if path is not None and self.trains else ()
        for target, there in [(path, imported), *further] if path is not None else ():
            module = self._module(Path(target), source, level, there)
            found: Value | None = module.store.get(there) if module is not None else None
            if found is not None:
                return found
        return None

    def find_unread(self, source: Source, name: str, level: int, imported: str) -> Value | None:
        """The same where the module was left unread, to be read once something low is handed to what it defines."""
        path = locate(str(source.file), name, level) if source.file is not None and self.trains else None
        if path is None:
            return None
        return Unread(f"{name}.{imported}".lstrip("."), partial(self._read_after_all, path, source, imported))

    def _read_after_all(self, path: str, source: Source, imported: str) -> Value | None:
        for target, there in ((path, imported), *origins(path, imported)):
            file = Path(target)
            if self.loaded.get(file) is None and self.late < MAX_LATE:
                self.late += 1
                self._read(file, source, whatever=True)
            module = self.loaded.get(file)
            found: Value | None = module.store.get(there) if module is not None else None
            if found is not None and not isinstance(found, Unread):
                return found
        return None

    def _module(self, path: Path, source: Source, level: int, wanted: str = "") -> ModuleRef | None:
        if path not in self.loaded:
            self._load(path, source, level, wanted)
        return self.loaded.get(path)

    def read(self, source: Source, name: str) -> bytes | None:
        """The content of a file that a script names, sought beside the script and in the folders above it."""
        if source.file is None:
            return None
        near = list(source.file.parents)[:MAX_FOLDERS]
        if Path(name).is_absolute() and not Path(os.path.normpath(name)).is_relative_to(os.path.abspath(near[-1])):
            return None
        for folder in near:
            try:
                raw = read(folder / name)
            except OSError:
                continue
            self.hashes[str(folder / name)] = digest(raw)
            return raw
        return None

    def _load(self, path: Path, source: Source, level: int, wanted: str) -> None:
        """Runs a module, unless it is large, or far and what is wanted of it can make nothing low."""
        assert source.file_folder is not None
        beside = path.parent == source.file_folder
        if self.runs >= (MAX_SIBLINGS if beside else MAX_FAR) or not (
            self.trains or path.is_relative_to(source.file_folder)
        ):
            return
        self._read(path, source, level, wanted)

    def _read(self, path: Path, source: Source, level: int = 0, wanted: str = "", whatever: bool = False) -> None:
        """Runs a module; unless it is asked for `whatever` it holds, only one that can make something low."""
        assert source.file_folder is not None
        beside = path.parent == source.file_folder
        self.loaded[path] = None
        try:
            raw = read(path)
            self.hashes[str(path)] = digest(raw)
            by_config = b"dtype" in raw and self.low_by_config
            settings = by_config or (self.trains and any(word in raw for word in READS))
            may_matter = (beside and not level) or settings or may_hold_a_finding(raw) or _hands_on(path, raw)
            if len(raw) > MAX_SIBLING_BYTES or not (may_matter or whatever):
                return
            if wanted and not whatever and not beside and not by_config and wanted not in leads_to(raw):
                del self.loaded[path]
                return
            way = os.path.relpath(path, source.file_folder)
            shown = os.path.normpath(os.path.join(os.path.dirname(source.path), way))
            found = Source(shown.replace(os.sep, "/"), decode(raw), path, WORD.findall(source.text))
        except (OSError, SourceError):
            return
        self.runs += 1
        store: Store = {}
        self.loaded[path] = ModuleRef(found, store)
        self.run.interpreter.run_module(found, store)


def _hands_on(path: Path, raw: bytes) -> bool:
    """Whether a package is all that its modules hold."""
    return path.name == "__init__.py" and b" import *" in raw


def analyze(source: Source) -> tuple[list[Fact], list[list[str]]]:
    """The Facts that this file proves, and [path, content hash] of each sibling module they also rest on."""
    run = Run(Answers)
    detectors.attach(run.bus)
    interpreter = run.interpreter
    siblings = Siblings(run, source, trains(source.text.encode("utf-8", "replace")))
    interpreter.find_module = siblings.find
    interpreter.find_name = siblings.find_name
    interpreter.find_unread = siblings.find_unread
    run.read_beside = siblings.read
    store: Store = {}
    enabled, limit = gc.isenabled(), sys.getrecursionlimit()
    gc.disable()
    sys.setrecursionlimit(max(limit, RECURSION_LIMIT))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            try:
                interpreter.run_module(source, store)
            except (OutOfBudget, RecursionError):
                interpreter.reset()
            interpreter.run_rest(source, store)
        if source.misread:
            return analyze(Source(source.path, source.text, source.file, whole=True))
        for conclude in overlays.answering("finish"):
            conclude(run)
        run.bus.finish(run)
        return run.facts.resolve(run.training.frameworks), [list(row) for row in siblings.hashes.items()]
    finally:
        interpreter.forget()
        del run.read_beside  # it holds the siblings, and they the run: nothing here waits for the garbage collector
        sys.setrecursionlimit(limit)
        if enabled:
            gc.enable()
