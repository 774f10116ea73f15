"""Opens and writes the files of others: regular ones of bearable size, written beside and renamed, through no link.

Nothing else in the package opens a file, but for what runs inside the traced process (`tests/test_disk.py`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

LARGEST = 64_000_000
"""Bytes; no source, config or setting that people write comes near."""
LARGEST_REPORT = 512_000_000
"""Bytes of a report, a rank file or an index of shards: those of thousands of ranks are large."""


def opened(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """A regular file, open to be read. Raises OSError for anything else: a pipe, a device, a folder, an odd name.

    A link is followed, and what it leads to has to be regular too; nothing is waited for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null byte in the name
        raise OSError(0, str(error)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "not a regular file", os.fspath(path))
    return open(handle, "rb", buffering=buffering)


def read(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """The content of a regular file. Raises OSError for anything else, and for one of more than `limit` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more: files of /proc say that they are empty, and others grow while they are read.
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise OSError(0, f"too large: {max(size, len(content)) / 1e6:.0f} MB", os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], limit: int = LARGEST) -> str:
    """The same as text. Raises OSError for what is not UTF-8 too."""
    try:
        return read(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise OSError(0, "not UTF-8 text", os.fspath(path)) from None


def write(path: Path, content: str | bytes, below: Path, mode: int | None = None) -> None:
    """Puts a file at a place below a folder, in one move: a reader sees the old content or the new, never half.

    What stands there is replaced, not written through: a link or a pipe that somebody planted leads nowhere. Folders
    are made; raises OSError, and leaves the old file, where one of them is a link, or the disk refuses.
    """
    make_folder(path.parent, below)
    _replace(path, content, mode)


def write_named(path: Path, content: str | bytes) -> None:
    """Puts a file where the user said: through a link of theirs, into their /dev/stdout or pipe. Raises OSError."""
    if is_device(path):
        with open(path, "wb") as file:
            file.write(_bytes(content))
        return
    _replace(path.resolve(), content)


def append(path: Path, line: str) -> None:
    """Adds a line to a file that is there. Raises OSError for a link, a pipe, and what is not there."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "ab") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "not a regular file", os.fspath(path))
        file.write(_bytes(line + "\n"))


def append_named(path: Path, line: str) -> None:
    """Adds a line where the user said, to a file that is made if it is not there. Raises OSError."""
    with open(path, "ab") as file:
        file.write(_bytes(line + "\n"))


def rewrite(path: Path, content: bytes) -> None:
    """Puts other content into a file of the project. Raises OSError for a link, which may lead out of it."""
    if path.is_symlink():
        raise OSError(0, f"it is a link to {os.readlink(path)}; name the file itself", os.fspath(path))
    _replace(path, content)


def make_folder(folder: Path, below: Path) -> None:
    """Makes a folder and those above it up to `below`, which the user named. Raises OSError for a link in its way."""
    inside = folder.relative_to(below).parts if folder.is_relative_to(below) else ()
    if ".." in inside:
        raise OSError(0, "it leads out of its folder", os.fspath(folder))
    below.mkdir(parents=True, exist_ok=True)
    place = below
    for part in inside:
        place = place / part
        if place.is_symlink():
            raise OSError(0, f"{place} is a link", os.fspath(folder))
        if place.exists() and not place.is_dir():
            raise OSError(0, f"{place} is not a folder", os.fspath(folder))
        place.mkdir(exist_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder of ours with all that is in it; follows no link, and leaves what cannot be removed."""
    import shutil

    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mirrored(folder: Path, copied: Iterable[Path]) -> Iterator[Path]:
    """A temporary folder that shows another one: some of its files, named from there, as copies, all else as links."""
    import shutil
    import tempfile

    files = set(copied)
    real = {parent for file in files for parent in file.parents}
    with tempfile.TemporaryDirectory(prefix="precaudit-copy-") as name:
        top = Path(name)
        for inside in sorted({Path(), *real}):
            (top / inside).mkdir(exist_ok=True)
            for entry in os.scandir(folder / inside):
                place = inside / entry.name
                if place in files:
                    shutil.copy(entry.path, top / place)
                elif place not in real:
                    os.symlink(os.path.abspath(entry.path), top / place)
        yield top


def try_writing(folder: Path) -> None:
    """Raises OSError where no file can be put into a folder: no rights, no room, a link in its way."""
    handle, name = _beside(folder / "precaudit")
    try:
        # A full disk makes a file and takes no byte of it.
        left = 4096
        while left:
            left -= os.write(handle, bytes(left))
    finally:
        os.close(handle)
        os.unlink(name)


def is_device(path: Path) -> bool:
    """Whether it is /dev/stdout, a pipe or the like: written to, never replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _replace(target: Path, content: str | bytes, mode: int | None = None) -> None:
    """Writes beside the target, with its mode where it is a file, and renames."""
    temporary = None
    try:
        handle, temporary = _beside(target)
        with os.fdopen(handle, "wb") as file:
            file.write(_bytes(content))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target) if mode is None else mode)
        os.replace(temporary, target)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def _beside(target: Path) -> tuple[int, Path]:
    """A new file in the target's folder, open to be written, for this user alone."""
    path = target.parent / f".{target.name[:100]}-{os.urandom(6).hex()}.tmp"
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600), path


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8", "replace") if isinstance(content, str) else content


def _mode(target: Path) -> int:
    """The mode of the file that is replaced; that of a new file where there is none."""
    try:
        found = os.lstat(target)
    except OSError:
        found = None
    if found is not None and stat.S_ISREG(found.st_mode):
        return stat.S_IMODE(found.st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
