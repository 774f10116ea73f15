"""The private folder first on the child's PYTHONPATH: bootstrap, runtime, settings, and the marks left there."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import precaudit
from precaudit.errors import OutputError
from precaudit.model.frameworks import FOLDER as FRAMEWORKS
from precaudit.model.frameworks import as_json

PACKAGE = "_precaudit"
"""The runtime's package name inside the child, where precaudit itself may not be installed."""
PREFIX = "precaudit-importlib_bootstrap-"
"""Of the tracer's folder. Python's warnings pass over frames of files with both words in their names, so that a warning
of torch names the user's line and not the wrapper around torch's function."""


RUNTIME = Path(precaudit.__file__).parent / "runtime"

BOOTSTRAP = RUNTIME / "sitecustomize.py"

PREFLIGHT = RUNTIME.parent / "preflight"

MODEL = [Path(precaudit.__file__).parent / "model" / name for name in ("vocabulary.py", "evidence.py", "frameworks.py")]
"""What the runtime uses of the model: words and tables, standard library only."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What the runtime in the child has to know; read there from `settings.json`."""

    cwd: str
    skip: int = 1
    steps: int = 2
    attempts: int = 25
    keep_going: bool = False
    looks_on: bool = False
    at: tuple[int, ...] = ()
    values: str = "sample"
    eager: bool = False
    exact: bool = False
    exact_modules: tuple[str, ...] = ()
    exact_memory: int = 0
    what_if: tuple[str, ...] = ()
    stochastic: bool = False
    ranks_folder: str = ""
    record: bool = False
    """What the program computes is hashed, to be compared with another run."""
    traced: bool = True
    """The program is traced; without, it is at most recorded."""
    preflight: Mapping[str, Any] | None = None
    """The device that is stood in for, where there is none: {"device": "h100", "fake": False, "world": {}}."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What the bootstrap left in the private folder: how far the child got."""

    loaded: bool
    """The bootstrap ran in at least one Python process."""
    torch: tuple[str, ...]
    """The versions of torch that came up."""
    torch_missing: str
    """The Python that was asked for torch and has none."""
    torch_too_old: str
    """The version of a torch that cannot be traced."""
    problems: tuple[str, ...]
    """Tracebacks of our own runtime."""
    refused: str = ""
    """Why a preflight would not begin."""
    gone: str = ""
    """The private folder, where it was removed while the command ran; nothing else is known then."""


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """A folder of one trace; it goes when the trace ends."""

    path: Path

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with this folder first on PYTHONPATH, so that Python finds our sitecustomize at start-up."""
        kept = base.get("PYTHONPATH")
        return {**base, "PYTHONPATH": f"{self.path}{os.pathsep}{kept}" if kept else str(self.path)}

    def marks(self) -> Marks:
        def text(name: str) -> str:
            file = self.path / name
            return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

        words = {"torch-missing", "torch-too-old"}
        versions = sorted(f.name for f in self.path.glob("torch-*") if f.name not in words)
        return Marks(
            loaded=(self.path / "loaded").exists(),
            torch=tuple(name.removeprefix("torch-") for name in versions),
            torch_missing=text("torch-missing"),
            torch_too_old=text("torch-too-old"),
            problems=tuple(text(f.name) for f in sorted(self.path.glob("problem-*.txt"))),
            refused=text("refused"),
            gone="" if self.path.is_dir() else str(self.path),
        )


def last_line(traceback: str) -> str:
    """What a traceback ends with: the error and its message."""
    lines = traceback.strip().splitlines()
    return lines[-1] if lines else "no reason given"


@contextmanager
def private_folder(settings: TraceSettings) -> Iterator[PrivateFolder]:
    """Makes the folder with everything the child needs of us, and removes it at the end."""
    try:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:  # where no folder will do, tempfile says so in a sentence with all of them
        where = os.environ.get("TMPDIR", "TMPDIR")
        raise OutputError(
            f"{where}: no folder can be made there: {error.strerror}; set TMPDIR to a writable folder"
        ) from None
    try:
        try:
            _furnish(path, settings)
        except (OSError, shutil.Error) as error:
            reason = error.strerror or _first_reason(error)
            raise OutputError(f"{path}: cannot be filled: {reason}; set TMPDIR to a folder with room") from None
        yield PrivateFolder(path)
    finally:
        # A process that the command left behind may still write there.
        shutil.rmtree(path, ignore_errors=True)


def _first_reason(error: OSError) -> str:
    """What went wrong with the first file of a folder that was to be copied."""
    failed = error.args[0] if error.args else ""
    return str(failed[0][2] if isinstance(failed, list) and failed else failed).rpartition("] ")[2].partition(":")[0]


def _furnish(path: Path, settings: TraceSettings) -> None:
    inside = path / PACKAGE
    # With their dates, so that what pip has compiled stays valid.
    shutil.copytree(RUNTIME, inside / "runtime", ignore=shutil.ignore_patterns(BOOTSTRAP.name))
    if settings.preflight is not None:
        shutil.copytree(PREFLIGHT, inside / "preflight")
    (inside / "model").mkdir()
    for package in (inside, inside / "model"):
        (package / "__init__.py").touch()
    for words in MODEL:
        shutil.copy(words, inside / "model" / words.name)
    (inside / "frameworks").mkdir()
    for words in FRAMEWORKS.glob("*.toml"):
        (inside / "frameworks" / f"{words.stem}.json").write_text(as_json(words), encoding="utf-8")
    shutil.copy(BOOTSTRAP, path / BOOTSTRAP.name)
    # Every process below the command imports it, and may be told to write no bytecode: compiling costs 60 ms each time.
    compileall.compile_dir(path, quiet=2)
    (path / "ranks").mkdir()
    write_settings(path, settings)


def write_settings(folder: Path, settings: TraceSettings) -> None:
    """Writes `settings.json`: a file, because some launchers pass on PYTHONPATH but no variable of ours."""
    raw = asdict(settings)
    raw["peers_folder"] = str(folder / "ranks")
    raw["ranks_folder"] = settings.ranks_folder or raw["peers_folder"]
    raw["record_folder"] = str(folder) if settings.record else None
    (folder / "settings.json").write_text(json.dumps(raw), encoding="utf-8")
