"""The file formats that are read, in one table, and those that are only recognised, to say what to do about them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from precaudit.checkpoint import dcp, safetensors, torch_zip
from precaudit.checkpoint.leaves import Leaf, Tensor, Unreadable
from precaudit.disk import opened


class Contents(NamedTuple):
    """What one file, or a folder of torch.distributed.checkpoint, holds."""

    leaves: list[Leaf]
    flat: bool
    """It is one model's state_dict and no more, as safetensors are."""
    foreign: list[str]
    """Code of its own that loading it with pickle would run."""
    problems: list[str]
    """What of it could not be read."""


def _safetensors(path: Path) -> Contents:
    return Contents(list(safetensors.read(path)), True, [], [])


def _torch(path: Path) -> Contents:
    contents = torch_zip.read(path)
    flat = bool(contents.leaves) and all(len(k) == 1 and isinstance(v, Tensor) for k, v in contents.leaves)
    return Contents(contents.leaves, flat, contents.foreign, [])


def _dcp(path: Path) -> Contents:
    folder = dcp.read(path.parent)
    return Contents(folder.leaves, False, folder.foreign, folder.problems)


class Format(NamedTuple):
    """One format, by how its files begin."""

    fits: Callable[[Path, bytes, int], bool]
    read: Callable[[Path], Contents]


FORMATS = (
    Format(lambda path, start, size: path.name == dcp.METADATA, _dcp),
    Format(lambda path, start, size: start.startswith(torch_zip.MAGIC), _torch),
    Format(lambda path, start, size: safetensors.fits(start, size), _safetensors),
)
SAVE_AGAIN = "load it once with a torch you trust it to, and torch.save it again"
REFUSED = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", f"it is in torch's format from before 1.6; {SAVE_AGAIN}"),
    (b"version https://git-lfs", "it is a Git LFS pointer and not the file itself; fetch it with: git lfs pull"),
    (b"GGUF", "GGUF is a format for inference; name the checkpoint that it was made from"),
    (b"\x89HDF", "HDF5 is not read; save the model with safetensors"),
    (b"\x80", f"it is a plain pickle, not what torch.save writes; {SAVE_AGAIN}"),
)
"""How files begin that are known and not read -> why, and the way out. Source of the first: torch/serialization.py."""


def _guarded(known: Format, path: Path) -> Contents:
    """What the file holds; whatever its bytes make a reader raise is Unreadable."""
    try:
        return known.read(path)
    except (Unreadable, OSError):
        raise
    except MemoryError:
        raise Unreadable("it wants more memory than there is") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:80]
        raise Unreadable(f"it is broken ({type(error).__name__}{f': {reason}' if reason else ''})") from None


def read(path: Path) -> Contents:
    """What the file holds. Raises Unreadable, with the reason and a way out, and OSError."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(512)
    if not size:
        raise Unreadable("it is empty")
    for known in FORMATS:
        if known.fits(path, start, size):
            return _guarded(known, path)
    for magic, reason in REFUSED:
        if start.startswith(magic):
            raise Unreadable(reason)
    if start[257:262] == b"ustar":
        raise Unreadable(f"it is a tar archive, as torch wrote before 0.4 or as somebody packed it; {SAVE_AGAIN}")
    if path.suffix == ".safetensors":
        raise Unreadable("it is not safetensors: it does not begin with a header")
    raise Unreadable("it is no checkpoint; safetensors, torch.save's files and torch.distributed.checkpoint are read")
