"""What frameworks call things, from `precaudit/frameworks/*.toml`: one file each, read by all three witnesses.

Standard library only. Inside a traced command, whose Python may read no TOML, the files come as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "frameworks"


class Precision(NamedTuple):
    """What a word such as "bf16-mixed" asks for."""

    dtype: str
    how: str
    """"autocast": around float32 parameters; "parameters": they are cast themselves."""


class Framework(NamedTuple):
    """One file: the words of one framework, as they were in the `versions` they were read from."""

    name: str
    title: str
    """As the framework writes itself; in lower case, the word of a rule's `fixes`."""
    versions: Mapping[str, str]
    """Package -> the version whose source was read."""
    precision: Mapping[str, Precision]
    """The framework's own words for a precision."""
    words: Mapping[str, Any]
    """Everything else in the file, as it stands there."""

    def named(self, table: str) -> tuple[str, ...]:
        """A list of names; empty where the file has none."""
        return tuple(self.words.get(table, ()))

    def dtypes(self, how: str) -> Mapping[str, str]:
        """Word -> dtype, of those that ask for it in this way."""
        return {word: asked.dtype for word, asked in self.precision.items() if asked.how == how}


@cache
def framework(name: str) -> Framework:
    """What is written of one framework, by the name of its file."""
    raw = _read(name)
    precision = {word: Precision(**asked) for word, asked in raw.pop("precision", {}).items()}
    return Framework(name, raw.pop("title"), raw.pop("versions"), precision, raw)


@cache
def all_frameworks() -> tuple[Framework, ...]:
    """Those that there is a file of."""
    names = {path.stem for path in FOLDER.iterdir() if path.suffix in (".toml", ".json")}
    return tuple(framework(name) for name in sorted(names))


def as_json(path: Path) -> str:
    """One file, as it goes to a Python that may read no TOML."""
    return json.dumps(_load_toml(path))


def _read(name: str) -> dict[str, Any]:
    beside = FOLDER / f"{name}.json"
    if beside.exists():
        found: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        return found
    return _load_toml(FOLDER / f"{name}.toml")


def _load_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8"))
