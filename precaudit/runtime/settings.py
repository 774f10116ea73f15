"""What the launcher tells the runtime: when to begin and end, and what to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """The keys of `settings.json`, with what holds where one is missing."""

    skip: int = 1
    """Steps before the window."""
    steps: int = 2
    """Steps in it."""
    attempts: int = 25
    """Steps after which it ends whatever was seen."""
    keep_going: bool = False
    """The program runs on after the window."""
    looks_on: bool = False
    """What happens after the window is watched for: sentinels stay in, and further windows open."""
    at: tuple[int, ...] = ()
    """Steps with which further windows begin."""
    values: str = "sample"
    """Elements of tensors that are looked at: "off", "sample" or "full"."""
    eager: bool = False
    """torch.compile does nothing."""
    exact: bool = False
    """One step runs with a float64 companion beside every floating number."""
    exact_modules: tuple[str, ...] = ()
    """Patterns of the modules that it follows; all where there is none."""
    exact_memory: int = 0
    """Bytes that the companions may take; 0: any."""
    what_if: tuple[str, ...] = ()
    """Formats that the exact step's matmuls are run in too."""
    stochastic: bool = False
    """These round at random."""
    preflight: Callable[[], dict[str, Any]] | None = None
    """Tells what of this run is real and what assumed, where a layer below the trace stands in for a device."""
    ranks_folder: str | None = None
    """Where what each process saw is written; None: nowhere."""
    peers_folder: str | None = None
    """Where the ranks of this node tell each other; None: in ranks_folder."""
    cwd: str = ""
