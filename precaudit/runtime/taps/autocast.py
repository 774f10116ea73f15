"""Sees which autocast regions the script enters: device, dtype, whether they turn autocast off inside another one.

Known limitations: `torch.set_autocast_enabled` called directly is not a region.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from ..events import Boundary, StepBegan
from ..frameworks import Declaration
from ..process.ledger import Observation
from ..sites import entered_by_library, user_site
from ..trackers.graph import GraphWalked
from ..trackers.lineage import DTYPE_NAMES
from ..trackers.optimizers import parameters

if TYPE_CHECKING:
    from ..session import Session


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


class AutocastProbe:
    """A stack of regions per thread. Inside a dispatched op torch itself no longer tells whether autocast is on."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._threads = threading.local()
        self._given: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._bare: dict[tuple[str, Any], Site | None] = {}
        """Regions entered without a dtype of their own."""
        self.declared: dict[tuple[str, Any], Site | None] = {}
        """(device, dtype) of every enabled region -> the line that entered the first of them."""
        self._trains: set[tuple[str, Any]] = set()
        """Those that were entered outside no_grad."""
        session.bus.on(GraphWalked, self._graph_walked)
        session.bus.on(StepBegan, self._step_began)
        session.bus.on(Boundary, lambda event: self.take_stock())

    def install(self) -> list[Callable[[], None]]:
        autocast = torch.amp.autocast_mode.autocast
        return [
            self.session.patch(autocast, "__init__", self._around_init),
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

    def users_own(self) -> bool:
        """Whether it is the script's doing that autocast is on."""
        region = self.active()
        return region is None or not region.by_library

    def trains_in(self) -> list[Any]:
        """The dtypes of the regions that training may have gone through."""
        return [dtype for on, dtype in self.declared if (on, dtype) in self._trains]

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
            if (device, dtype) in self._trains
            for role in (Role.FORWARD_WEIGHT, Role.MATMUL_COMPUTE)
        ]

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(region: Any, device_type: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
            original(region, device_type, dtype, *args, **kwargs)
            self._given[region] = dtype is not None

        return __init__

    def _graph_walked(self, event: GraphWalked) -> None:
        """A backward that the script calls inside of autocast."""
        if event.trains and self._is_on(event.found.leaves.values()):
            seen = Observation(Kind.BACKWARD, site=event.site, attrs={"autocast": True})
            self.session.once(("autocast", "backward"), seen)

    def _step_began(self, event: StepBegan) -> None:
        """A step that the script takes inside of autocast."""
        if self._is_on(parameters(event.optimizer)):
            name = type(event.optimizer).__name__
            seen = Observation(Kind.OPTIMIZER_STEP, site=user_site(), detail=name, attrs={"autocast": True})
            self.session.once(("autocast", "step", id(event.optimizer)), seen)

    def _is_on(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the script left autocast on, on a device where these are."""
        on = any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors})
        return on and self.users_own()

    def take_stock(self) -> None:
        """float16 regions, and regions that fell to another dtype than the run declares elsewhere."""
        for (device, dtype), site in self.declared.items():
            if dtype is torch.float16:
                self.session.ledger.put(
                    ("region", device, dtype),
                    Observation(Kind.AUTOCAST, "float16", Role.ACTIVATION, site, count=1, attrs={"prefer": "bfloat16"}),
                )
        for (device, dtype), site in self._bare.items():
            others = [other for on, other in self.declared if on == device and other is not dtype]
            given = [other for other in others if (device, other) not in self._bare]
            if given:
                detail = f"it falls to {DTYPE_NAMES[dtype]}, other regions on {device} are {DTYPE_NAMES[given[0]]}"
                self.session.ledger.put(
                    ("bare", device, dtype),
                    Observation(
                        Kind.AUTOCAST,
                        DTYPE_NAMES[dtype],
                        Role.ACTIVATION,
                        site,
                        detail=detail,
                        count=1,
                        attrs={"dtype_given": False, "same_dtype": False},
                    ),
                )

    def _around_enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __enter__(region: Any) -> Any:
            out = original(region)
            self.session.guard("autocast", self._entered, region, torch.is_grad_enabled())
            return out

        return __enter__

    def _entered(self, region: Any, trains: bool) -> None:
        around = any(r.enabled and r.device == region.device for r in self.regions)
        enabled = bool(region._enabled)
        key = (region.device, region.fast_dtype)
        site = user_site() if (enabled and key not in self.declared) or (around and not enabled) else None
        by_library = enabled and entered_by_library()
        self.regions.append(Region(region.device, region.fast_dtype, enabled, around, site, by_library))
        if enabled and trains:
            self._trains.add(key)
        if enabled and key not in self.declared:
            self.declared[key] = site
            if not self._given.get(region, True):
                self._bare[key] = site

    def _around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __exit__(region: Any, *args: Any) -> Any:
            if self.regions:
                self.regions.pop()
            return original(region, *args)

        return __exit__
