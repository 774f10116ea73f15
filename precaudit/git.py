"""Asks git about a repository whose configuration nobody has read: no hook, monitor or differ that it names is run."""

from __future__ import annotations

import os

QUIET = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "diff.external=")


def command(folder: str | os.PathLike[str], *words: str) -> list[str]:
    """The command line that asks git about the repository around `folder`."""
    return ["git", *QUIET, "-C", os.fspath(folder), *words]
