"""Settings of the static pass: command line over environment over `[tool.precaudit]` in pyproject.toml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from precaudit.disk import read, read_text
from precaudit.errors import ConfigError
from precaudit.foreign import ForeignError, parse_toml

SEVERITIES = ("error", "warning", "note", "never")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `[tool.precaudit]` can say; the names there are spelled with hyphens."""

    select: tuple[str, ...] = ()
    """Only these rules; empty means all."""
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path pattern -> rules that are silent there."""
    exclude: tuple[str, ...] = ()
    """.gitignore patterns, from the folder of pyproject.toml."""
    respect_gitignore: bool = True
    fail_on: str = "error"
    """The least severity that makes the exit code 1."""
    notes: bool = False
    output_format: str = ""
    baseline: str = ""
    cache_dir: str = ""
    output_dir: str = ""
    """Where every trace leaves its report; `.precaudit` below the working directory where it is empty."""
    keep_runs: int = 20
    """Finished runs whose reports are kept there, the newest."""
    trace: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `precaudit trace`, which reads them itself."""
    contract: Mapping[str, Any] = field(default_factory=dict)
    """Roles that may hold other dtypes; read in `allowed/read.py`, as `allow` is."""
    allow: tuple[Mapping[str, Any], ...] = ()
    """Rules that are silent in some modules until a day."""
    source: Path | None = None
    """The pyproject.toml that was read."""
    root: Path = Path()
    """The folder of pyproject.toml, or the current one."""


LISTS = ("select", "extend_select", "ignore", "exclude")
BOOLEANS = ("respect_gitignore", "notes")
STRINGS = ("fail_on", "output_format", "baseline", "cache_dir", "output_dir")
NUMBERS = ("keep_runs",)
TABLES = ("per_file_ignores", "trace", "contract")
KEYS = tuple(f.name for f in fields(Settings) if f.name not in ("root", "source"))


def find_pyproject(start: Path) -> Path | None:
    """The nearest pyproject.toml with a `[tool.precaudit]` table, from a folder upwards."""
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                raw = read(path)
            except OSError:
                continue
            if b"tool.precaudit" in raw:
                return path
    return None


def load(
    start: Path | None = None, config: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings for a folder. Raises ConfigError, one line, for a file or value that cannot be used."""
    environment = os.environ if environment is None else environment
    start = (start or Path.cwd()).resolve()
    path = config or find_pyproject(start)
    settings = Settings(root=path.resolve().parent if path is not None else start, source=path)
    if path is not None:
        settings = _from_file(settings, path)
    return _from_environment(settings, environment)


def _from_file(settings: Settings, path: Path) -> Settings:
    try:
        raw = parse_toml(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ForeignError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    table = raw.get("tool", {}).get("precaudit", {})
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{path.name}: [tool.precaudit] {key}"
        if name not in KEYS:
            import difflib

            near = difflib.get_close_matches(name, KEYS, n=1)
            spelled = [k.replace("_", "-") for k in near or KEYS]
            hint = f"did you mean '{spelled[0]}'?" if near else f"keys: {', '.join(spelled)}"
            raise ConfigError(f"{where}: unknown key; {hint}")
        changes[name] = _checked(name, value, where)
    if changes.get("output_dir"):
        changes["output_dir"] = str(path.parent / changes["output_dir"])
    if changes.get("cache_dir"):
        changes["cache_dir"] = str(_inside(settings.root, changes["cache_dir"], path))
    return replace(settings, **changes)


def _inside(root: Path, folder: str, path: Path) -> Path:
    """A folder of the project, named in its settings. Raises ConfigError for one outside: `check` writes there."""
    found = (root / folder).resolve()
    if not found.is_relative_to(root):
        raise ConfigError(
            f"{path.name}: [tool.precaudit] cache-dir: '{folder}' leads out of the project; "
            "only PRECAUDIT_CACHE_DIR may name a folder elsewhere"
        )
    return found


def _checked(name: str, value: Any, where: str) -> Any:
    if name in LISTS:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: a list of strings is expected")
        return tuple(value)
    if name in BOOLEANS:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: true or false is expected")
        return value
    if name == "allow":
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"{where}: tables are expected, each below [[tool.precaudit.allow]]")
        return tuple(value)
    if name in NUMBERS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{where}: a whole number is expected, 0 or more")
        return value
    if name in TABLES:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a table is expected")
        if name in ("trace", "contract"):
            return value
        return {pattern: _checked("ignore", rules, f"{where}.{pattern}") for pattern, rules in value.items()}
    if not isinstance(value, str):
        raise ConfigError(f"{where}: a string is expected")
    if name == "fail_on" and value not in SEVERITIES:
        raise ConfigError(f"{where}: '{value}' is not a severity; allowed: {', '.join(SEVERITIES)}")
    return value


def _from_environment(settings: Settings, environment: Mapping[str, str]) -> Settings:
    changes: dict[str, Any] = {}
    for name in (*LISTS, *STRINGS, *BOOLEANS, *NUMBERS):
        key = f"PRECAUDIT_{name.upper()}"
        value = environment.get(key, "")
        if not value:
            continue
        if name in LISTS:
            changes[name] = tuple(part.strip() for part in value.split(",") if part.strip())
        elif name in BOOLEANS:
            if value.lower() not in ("0", "1", "true", "false"):
                raise ConfigError(f"{key}: '{value}' is neither true nor false")
            changes[name] = value.lower() in ("1", "true")
        elif name in NUMBERS:
            changes[name] = _checked(name, int(value) if value.isdigit() else value, key)
        else:
            changes[name] = _checked(name, value, key)
    return replace(settings, **changes)
