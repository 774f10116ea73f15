"""Which autocast regions the script is in, and has entered: device, dtype, by whom.

Known limitations: `torch.set_autocast_enabled` called directly is not a region.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

from ...model.vocabulary import Role, Site
from ..dtypes import DTYPE_NAMES
from ..events import AutocastEntered, AutocastLeft, AutocastMade, Bus
from ..sites import entered_by_library, user_site
from .claims import Declaration


class Region(NamedTuple):
    """One entered autocast block."""

    device: str
    dtype: Any
    enabled: bool
    inside: bool
    """Another region of the same device was enabled around it."""
    site: Site | None = None
    by_library: bool = False
    """A framework entered it around the user's code."""


class Autocast:
    """A stack of regions per thread. Inside a dispatched op torch itself no longer tells whether autocast is on."""

    def __init__(self, bus: Bus) -> None:
        self._threads = threading.local()
        self._given: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self.bare: dict[tuple[str, Any], Site | None] = {}
        """Regions entered without a dtype of their own."""
        self.declared: dict[tuple[str, Any], Site | None] = {}
        """(device, dtype) of every enabled region -> the line that entered the first of them."""
        self._with_gradients: set[tuple[str, Any]] = set()
        """Those that were entered outside no_grad."""
        bus.on(AutocastMade, self._made, always=True)
        bus.on(AutocastEntered, self._entered, always=True)
        bus.on(AutocastLeft, self._left, always=True)

    def _made(self, event: AutocastMade) -> None:
        self._given[event.region] = event.dtype_given

    def _entered(self, event: AutocastEntered) -> None:
        region = event.region
        around = any(r.enabled and r.device == region.device for r in self.regions)
        enabled = bool(region._enabled)
        key = (region.device, region.fast_dtype)
        site = user_site() if (enabled and key not in self.declared) or (around and not enabled) else None
        by_library = enabled and entered_by_library()
        self.regions.append(Region(region.device, region.fast_dtype, enabled, around, site, by_library))
        if enabled and event.with_gradients:
            self._with_gradients.add(key)
        if enabled and key not in self.declared:
            self.declared[key] = site
            if not self._given.get(region, True):
                self.bare[key] = site

    def _left(self, event: AutocastLeft) -> None:
        if self.regions:
            self.regions.pop()

    # -- questions

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

    def users_own(self) -> bool:
        """Whether it is the script's doing that autocast is on."""
        region = self.active()
        return region is None or not region.by_library

    def entered_with_gradients(self) -> list[Any]:
        """The dtypes of the regions that training may have gone through."""
        return [dtype for on, dtype in self.declared if (on, dtype) in self._with_gradients]

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

    def declares(self) -> list[Declaration]:
        """What the regions ask for: the dtype of weights and operands inside them."""
        return [
            Declaration(role, DTYPE_NAMES[dtype], f"autocast({device!r})", site)
            for (device, dtype), site in self.declared.items()
            if (device, dtype) in self._with_gradients
            for role in (Role.FORWARD_WEIGHT, Role.MATMUL_COMPUTE)
        ]
