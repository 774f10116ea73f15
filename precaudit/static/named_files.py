"""The YAML, JSON and TOML files that a script reads its settings from, and the shell scripts that start it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from precaudit.disk import read

MAX_FOLDERS = 4
"""How far up from the script a file is sought."""
MAX_FILES = 24
READS = (b"yaml.", b"json.load", b"toml", b"OmegaConf", b"hydra")
"""Words of a script that reads such files."""
LAUNCHED = (b"HfArgumentParser", b"TrlParser")
"""Words of a script whose settings stand in the command that starts it."""
NAMED = re.compile(rb"[\"']([\w./-]{1,200}\.(?:ya?ml|json|toml))[\"']")
LITERAL = re.compile(rb"[\"']([\w./-]{1,200})[\"']")
HYDRA = re.compile(rb"hydra\.main\(([^()]{1,400})\)")
FOLDER = re.compile(rb"config_path\s*=\s*[\"']([\w./-]+)[\"']")
LOW_WORD = re.compile(rb"\b(?:bfloat16|float16|bf16|fp16|half)\b")


def named(file: str, raw: bytes) -> Iterator[str]:
    """The paths of the files that exist, beside the script or further up."""
    if launched(raw):
        yield from _launchers(file)
    if not any(word in raw for word in READS):
        return
    found: set[str] = set()
    for match in NAMED.finditer(raw):
        line = raw[raw.rfind(b"\n", 0, match.start()) + 1 : match.end()]
        parts = [part.decode() for part in LITERAL.findall(line[-1000:])]
        for name in (match[1].decode(), os.path.join(*parts)):
            found.update(_near(file, name))
    for match in HYDRA.finditer(raw):
        folder = FOLDER.search(match[1])
        for path in _near(file, folder[1].decode(), folders=True) if folder else ():
            found.update(_configs_in(path))
    yield from sorted(found)[:MAX_FILES]


def launched(raw: bytes) -> bool:
    """Whether a script's settings stand in the command that starts it."""
    return any(word in raw for word in LAUNCHED)


def _launchers(file: str) -> Iterator[str]:
    """The shell scripts beside a script that name it."""
    folder, name = os.path.split(os.path.abspath(file))
    scripts = sorted(entry for entry in os.listdir(folder) if entry.endswith(".sh"))[:MAX_FILES]
    for path in (os.path.join(folder, script) for script in scripts):
        try:
            if name.encode() in read(path):
                yield path
        except OSError:
            continue


def _near(file: str, name: str, folders: bool = False) -> list[str]:
    """The nearest file or folder of that name."""
    folder = os.path.dirname(os.path.abspath(file))
    for _ in range(MAX_FOLDERS):
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.isdir(path) if folders else os.path.isfile(path):
            return [path]
        folder = os.path.dirname(folder)
    return []


def _configs_in(folder: str) -> Iterator[str]:
    """The configs of a folder and of the folders in it."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)[:200]:
        if entry.is_dir(follow_symlinks=False):
            inner = sorted(os.listdir(entry.path))[:200]
            yield from (os.path.join(entry.path, name) for name in inner if name.endswith((".yaml", ".yml")))
        elif entry.name.endswith((".yaml", ".yml")):
            yield entry.path


def says_low(raw: bytes) -> bool:
    """Whether such a file names a low dtype."""
    return LOW_WORD.search(raw) is not None
