"""Results of earlier runs, by content hash, tool version and rules; only those that this user wrote are believed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from precaudit import __version__
from precaudit.disk import opened, read, write
from precaudit.foreign import ForeignError, parse_json
from precaudit.static.files.discovery import Found

FOLDER = ".precaudit_cache"
LARGEST = 512_000_000
"""Bytes: half a million files have a row each."""
KEY = 32
"""Bytes."""


def digest(raw: bytes) -> str:
    """What tells contents apart."""
    import hashlib  # one file without a cache never needs it

    return hashlib.sha256(raw).hexdigest()[:32]


def _tool() -> str:
    """Changes whenever the code or a rule of this package does."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    stamp = [__version__]
    folders = [package, os.path.join(os.path.dirname(package), "rules")]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.name.endswith((".py", ".toml")):
                stat = entry.stat()
                stamp.append(f"{entry.name}{stat.st_size}{stat.st_mtime_ns}")
            elif entry.is_dir():
                folders.append(entry.path)
    return digest("".join(stamp).encode())[:16]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def shown_as(result: Any, before: str, now: str) -> Any:
    """The result of a file that was examined under the name `before`, with its places under the name it has `now`.

    Names count from the working directory: what is `src/x.py` in one folder is `x.py` in another.
    """
    if before == now or not isinstance(result, dict) or not result.get("facts"):
        return result

    def renamed(site: Any) -> Any:
        if not site or os.path.isabs(site[0]):
            return site
        below = os.path.relpath(site[0], os.path.dirname(before) or ".")
        path = now if site[0] == before else os.path.normpath(os.path.join(os.path.dirname(now), below))
        return [path.replace(os.sep, "/"), *site[1:]]

    facts = [
        {
            **fact,
            "site": renamed(fact["site"]),
            "cause": fact["cause"] and [fact["cause"][0], renamed(fact["cause"][1])],
        }
        for fact in result["facts"]
    ]
    return {**result, "facts": facts}


class Cache:
    """One file per version of the tool; each row is path -> [mtime, size, content hash, path as shown, result]."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._file = folder / f"check-{_tool()}.json" if folder is not None else None
        self._rows: dict[str, list[Any]] = {}
        self._changed = False
        if self._file is not None and (key := _key()):
            with suppress(OSError, ForeignError):
                rows = read(self._file, LARGEST)
                if read(self._file.with_suffix(".seal")) == _seal(key, self._file, rows):
                    self._rows = parse_json(rows)

    def by_stat(self, item: Found, stat: os.stat_result) -> Any:
        """The result for a file whose size and time of change are as they were; None where it is not known."""
        row = self._rows.get(item.file)
        if row is None or len(row) != 5 or row[0] != stat.st_mtime_ns or row[1] != stat.st_size:
            return None
        return shown_as(row[4], row[3], item.shown) if self._siblings_same(row[4]) else None

    def by_content(self, item: Found, stat: os.stat_result, raw: bytes) -> Any:
        """The result for a file whose content is as it was, though it was touched."""
        row = self._rows.get(item.file)
        if row is None or len(row) != 5 or row[2] != digest(raw) or not self._siblings_same(row[4]):
            return None
        row[0], row[1] = stat.st_mtime_ns, stat.st_size
        self._changed = True
        return shown_as(row[4], row[3], item.shown)

    def _siblings_same(self, result: Any) -> bool:
        """Whether the modules that the result also rests on are unchanged."""
        if not isinstance(result, dict):
            return False
        if "siblings" not in result:
            return True
        try:
            return all(digest(read(path)) == value for path, value in result["siblings"])
        except (OSError, ValueError, TypeError):
            return False

    def put(self, item: Found, stat: os.stat_result, raw: bytes, result: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._rows[item.file] = [stat.st_mtime_ns, stat.st_size, digest(raw), item.shown, result]
        self._changed = True

    def save(self) -> None:
        """Writes atomically; a folder that cannot be written to is no error."""
        if self._file is None or self.folder is None or not self._changed:
            return
        import json

        key = _key(make=True)
        rows = json.dumps(self._rows, separators=(",", ":")).encode()
        with suppress(OSError):
            if key and not (self.folder / ".gitignore").exists():
                write(self.folder / ".gitignore", "*\n", self.folder.parent)
            if key:
                write(self._file, rows, self.folder.parent)
                write(self._file.with_suffix(".seal"), _seal(key, self._file, rows), self.folder.parent)


def _key(make: bool = False) -> bytes:
    """What this user's precaudit seals its caches with; empty where there is none, or none can be kept.

    A project may come with a cache folder that somebody else filled, and a row in it silences findings.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home, "precaudit", "key")
    with suppress(OSError):
        with opened(path) as file:
            found, mine = file.read(KEY), os.fstat(file.fileno())
        owner = os.geteuid() if hasattr(os, "geteuid") else mine.st_uid
        # A key that others can read or change seals nothing.
        if len(found) == KEY and mine.st_uid == owner and not mine.st_mode & 0o077:
            return found
    if make:
        with suppress(OSError):
            found = os.urandom(KEY)
            write(path, found, Path(home), mode=0o600)
            return found
    return b""


def _seal(key: bytes, file: Path, rows: bytes) -> bytes:
    """What only who has the key can write beside these rows."""
    import hashlib

    return hashlib.blake2b(file.name.encode() + b"\0" + rows, key=key, digest_size=32).hexdigest().encode()
