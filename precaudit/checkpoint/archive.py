"""Finds records in the zip archives that torch.save writes: where each stands in the file, without reading it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import BinaryIO

from precaudit.checkpoint.leaves import Piece, Unreadable

LOCAL_HEADER = 30
"""Bytes before a record's name. Source: APPNOTE.TXT 4.3.7, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT"""
LARGEST_RECORD = 64_000_000
"""Bytes of a record that is read as a whole: torch keeps tensors apart, and what is left is small."""


class Window(io.RawIOBase):
    """A part of an open file, as a file of its own: a DCP file is one archive behind another."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(22, "negative seek position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


class Archive:
    """The records of one archive, which begins at `start` in the file and is `length` bytes long."""

    def __init__(self, path: Path, file: BinaryIO, start: int = 0, length: int | None = None) -> None:
        size = path.stat().st_size
        if length is not None and start + length > size:
            raise Unreadable(f"it is cut short: something ends at byte {start + length:,}, and it has {size:,}")
        self._path, self._file, self._start = path, file, start
        try:
            self._zip = zipfile.ZipFile(Window(file, start, size - start if length is None else length))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise Unreadable("it is cut short, or no zip archive: it has no table of contents at its end") from None
        self._by_name = {name.partition("/")[2]: name for name in self._zip.namelist()}

    def __contains__(self, record: str) -> bool:
        return record in self._by_name

    def read(self, record: str) -> bytes:
        """The record as a whole. Raises Unreadable where it is too large for that, or broken."""
        info = self._zip.getinfo(self._by_name[record])
        if max(info.file_size, info.compress_size) > LARGEST_RECORD:
            raise Unreadable(f"its record {record} takes {info.file_size:,} bytes; at most {LARGEST_RECORD:,} are read")
        try:
            with self._zip.open(info) as source:
                return source.read(LARGEST_RECORD)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
            raise Unreadable(f"its record {record} is broken or cut short") from None

    def find(self, record: str) -> Piece | None:
        """Where the bytes of a stored record stand; None where there is no such record, or it is compressed."""
        name = self._by_name.get(record)
        if name is None:
            return None
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        at = self._start + info.header_offset
        self._file.seek(at)
        header = self._file.read(LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise Unreadable(f"its record {record} does not stand where its table of contents says")
        begin = at + LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return Piece(self._path, begin, info.file_size)
