"""Sees which autocast regions the script enters: device, dtype, whether they turn autocast off inside another one.

Known limitations: `torch.set_autocast_enabled` called directly is not a region.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...model.vocabulary import Site
from ..sites import user_site
from .ops import DTYPE_NAMES

if TYPE_CHECKING:
    from ..session import Session


class Region(NamedTuple):
    """One entered autocast block."""

    device: str
    dtype: Any
    enabled: bool
    inside: bool
    """Another region of the same device was enabled around it."""


class AutocastProbe:
    """A stack of regions per thread. Inside a dispatched op torch itself no longer tells whether autocast is on."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._threads = threading.local()
        self.declared: dict[tuple[str, Any], Site | None] = {}
        """(device, dtype) of every enabled region -> the line that entered the first of them."""

    def install(self) -> list[Callable[[], None]]:
        autocast = torch.amp.autocast_mode.autocast
        return [
            self.session.patch(autocast, "__enter__", self._around_enter),
            self.session.patch(autocast, "__exit__", self._around_exit),
        ]

    @property
    def regions(self) -> list[Region]:
        """The regions this thread is in, outermost first."""
        if not hasattr(self._threads, "regions"):
            self._threads.regions = []
        found: list[Region] = self._threads.regions
        return found

    def active(self) -> Region | None:
        """The innermost region, where it is enabled."""
        return self.regions[-1] if self.regions and self.regions[-1].enabled else None

    def disabled_inside(self) -> bool:
        """Whether the innermost region turns off one that is around it."""
        return bool(self.regions) and not self.regions[-1].enabled and self.regions[-1].inside

    def words(self) -> str:
        """The active region as "bfloat16 on cpu", or ""."""
        region = self.active()
        return f"{DTYPE_NAMES[region.dtype]} on {region.device}" if region else ""

    def setup(self) -> str:
        """Every dtype and device that autocast was entered with."""
        return ", ".join(f"{DTYPE_NAMES[dtype]} on {device}" for device, dtype in self.declared)

    def _around_enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __enter__(region: Any) -> Any:
            out = original(region)
            self.session.guard("autocast", self._entered, region)
            return out

        return __enter__

    def _entered(self, region: Any) -> None:
        around = any(r.enabled and r.device == region.device for r in self.regions)
        enabled = bool(region._enabled)
        self.regions.append(Region(region.device, region.fast_dtype, enabled, around))
        if enabled and (region.device, region.fast_dtype) not in self.declared:
            self.declared[(region.device, region.fast_dtype)] = user_site()

    def _around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __exit__(region: Any, *args: Any) -> Any:
            if self.regions:
                self.regions.pop()
            return original(region, *args)

        return __exit__
