"""Reads a file of the project under check: a regular one of bearable size, never a pipe or a device it links to."""

from __future__ import annotations

import os
import stat

LARGEST = 64_000_000
"""Bytes; no source or config that people write comes near."""


def read(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. Raises OSError for anything else, and for a name that cannot be one."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(0, str(error)) from None
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file")
        if found.st_size > LARGEST:
            raise OSError(0, f"too large: {found.st_size / 1e6:.0f} MB")
        return file.read(LARGEST)
