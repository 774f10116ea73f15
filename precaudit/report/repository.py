"""Paths as the services that show findings want them: relative to the repository, with forward slashes."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath


def repository(root: Path) -> Path:
    """The folder above `root` that holds `.git`; `root` itself where there is none."""
    here = root.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def relative(path: str, root: Path, top: Path) -> str:
    """A report's path, relative to `top`; unchanged but for its slashes where it lies outside."""
    whole = Path(os.path.normpath(root.resolve() / path))
    if whole.is_relative_to(top):
        return whole.relative_to(top).as_posix()
    return PurePosixPath(*Path(path).parts).as_posix()
