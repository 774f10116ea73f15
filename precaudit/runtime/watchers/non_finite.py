"""PA213: a loss, a gradient or a parameter that is NaN or inf, and the operation that it began with.

Known limitations: the operation is known where it ran in the last step before the window, or in a traced step after one
in which something was not finite; what was read in as NaN is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Attempted, Boundary, Bus, LossScaled, PassDropped, WindowOpened
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.graph import GraphWalked
from ..trackers.loss_scale import LossScale
from ..trackers.micro_batches import GradientsReady
from ..trackers.modules import Modules
from ..trackers.optimizers import parameters
from ..trackers.origins import READABLE, Origin, Origins
from ..trackers.parameter_writes import ParameterWrites
from ..trackers.samples import batches, sums
from ..trackers.steps import Steps
from ..trackers.window import MANY_SKIPS, Window
from . import Watcher

WORST = ("loss", "gradient", "parameter")
"""What may be not finite, the worst last."""
ROLES = {"loss": Role.LOSS, "gradient": Role.GRADIENT, "parameter": Role.MASTER_WEIGHT}
LOW_SCALE = 1024.0
"""A loss scale that few models need to come below: gradients that overflow at it were not lifted there by it."""
LONG = 1 << 10
"""From so many elements on a norm of its own is cheaper than a copy beside others."""
NAMED = 3
"""Parameters that are named before the rest is counted."""


class Found(NamedTuple):
    """Something of this step that is not finite."""

    what: str
    value: str
    """ "nan" or "inf"."""
    dtype: Any
    name: str
    """The parameter's name."""
    number: int
    """Its last result in Origins."""
    site: Site | None


class NonFinite(Watcher):
    """Looks at losses, at gradients before a step and at parameters after it, once each; says what it found first."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        window: Window,
        modules: Modules,
        loss_scale: LossScale,
        origins: Origins,
        steps: Steps,
        writes: ParameterWrites,
    ) -> None:
        self._ledger = ledger
        self._window = window
        self._origins = origins
        self._loss_scale = loss_scale
        self._steps = steps
        self._writes = writes
        self._modules = modules
        self.sick = False
        """Something was not finite in the last step that was looked at."""
        self._found: list[Found] = []
        self._gradients: list[Found] = []
        """Those of the attempt that is going on: they count where its step is taken."""
        self._counted: list[list[Found]] = []
        self._kept: dict[tuple[str, str], Found] = {}
        """What, and of which parameter: the first of each."""
        self._first: Origin | None = None
        self._backward_at: Site | None = None
        bus.on(LossScaled, self._loss_scaled)
        bus.on(GraphWalked, self._graph_walked)
        bus.on(PassDropped, self._pass_dropped)
        bus.on(GradientsReady, lambda event: self.gradients(event.leaves))
        bus.on(Attempted, self._attempted)
        bus.on(Boundary, lambda event: self.take_stock())
        bus.on(WindowOpened, self._window_opened)

    @property
    def watches(self) -> bool:
        """Whether values are looked at now: in traced steps, and in the last one before them."""
        return self._ledger.measures and (self._window.tracing or self._origins.following)

    def _window_opened(self, event: WindowOpened) -> None:
        """A sick run's origin is looked for in the window too."""
        if self.sick:
            self._origins.begin()

    def _loss_scaled(self, event: LossScaled) -> None:
        for loss in event.given:
            self.loss(loss)

    def _graph_walked(self, event: GraphWalked) -> None:
        self._backward_at = event.site or self._backward_at
        if event.trains and self._loss_scale.of_backward is None and len(event.roots) == 1:
            self.loss(event.roots[0])

    # -- what is looked at

    def loss(self, value: Tensor) -> None:
        """A loss before any scaling: the root of backward, or what was handed to GradScaler."""
        if not self.watches or value.numel() != 1 or value.dtype not in READABLE or private.is_capturing(value):
            return
        number, site, dtype = self._origins.last(value), user_site(), value.dtype
        held = private.without_graph(value)

        def use(values: list[float]) -> None:
            if not math.isfinite(values[0]):
                self._found.append(Found("loss", _word(values[0]), dtype, "", number, site))

        if held is not None:
            self._ledger.defer([held], use)

    def _pass_dropped(self, event: PassDropped) -> None:
        """A loop that leaves out such losses calls no backward: what a pass came to is looked at once it is dropped."""
        for number, value, dtype, site in self._origins.ends():
            self._found.append(Found("loss", value, dtype, "", number, site))
        self.take_stock()

    def gradients(self, owners: Iterable[Tensor]) -> None:
        """The gradients that a step is about to use."""
        self._gradients = []
        pairs = [(p, private.local(p.grad)) for p in owners if p.grad is not None]
        self._look("gradient", pairs, self._gradients)

    def _attempted(self, event: Attempted) -> None:
        """An attempt is over. Gradients that made GradScaler skip it are its own affair, unless it never stops."""
        if not self.watches:
            return
        by_hand = event.optimizer is self._steps.hand_written
        mine = self._writes.leaves() if by_hand else parameters(event.optimizer)
        if not event.skipped:
            own = [(p, private.local(p)) for p in mine]
            plain = [pair for pair in own if type(pair[1]) in private.PLAIN or private.is_plain(type(pair[1]))]
            self._look("parameter", plain, self._found)
        elif self._window.stuck and self._scale_is_low(event.scaler):
            self.gradients(mine)
        else:
            return
        self._counted.append(self._gradients)

    def _scale_is_low(self, scaler: Any) -> bool:
        return scaler is None or self._loss_scale.state(scaler).skips.smallest <= LOW_SCALE

    def _look(self, what: str, pairs: list[tuple[Tensor, Tensor]], into: list[Found]) -> None:
        """A norm of each tensor, all read at once; which of them is not finite is asked only where one is not."""
        if not self.watches:
            return
        by_kind: dict[tuple[Any, Any], list[tuple[Tensor, Tensor]]] = {}
        for owner, tensor in pairs:
            plain = type(tensor) in private.PLAIN and tensor.layout is torch.strided and tensor.dtype in READABLE
            if plain and tensor.numel() and tensor.untyped_storage().nbytes() and not private.is_capturing(tensor):
                by_kind.setdefault((tensor.device, tensor.dtype), []).append((owner, tensor))
        following = self._origins.following
        for held in by_kind.values():
            held.sort(key=lambda pair: pair[1].numel() < LONG)
            norms = _norms([tensor for _, tensor in held])
            numbers = [self._origins.last(tensor) if following else -1 for _, tensor in held]
            self._ledger.defer([norms.sum()], self._reader(what, held, norms, numbers, into))

    def _reader(
        self, what: str, held: list[tuple[Tensor, Tensor]], norms: Tensor, numbers: list[int], into: list[Found]
    ) -> Callable[[list[float]], None]:
        def use(values: list[float]) -> None:
            if math.isfinite(values[0]):
                return
            for (owner, tensor), norm, number in zip(held, norms.tolist(), numbers, strict=True):
                # A norm may overflow where no element does.
                if norm != norm or (math.isinf(norm) and not torch.isfinite(tensor).all()):
                    name = self._modules.name(owner)
                    into.append(Found(what, _word(norm), tensor.dtype, name, number, None))

        return use

    # -- what is said

    def take_stock(self) -> None:
        """A step is over and its numbers are read: what was not finite in it, and where that began."""
        if not self.watches:
            return
        found = [*self._found, *(one for counted in self._counted for one in counted)]
        self._found, self._counted = [], []
        self.sick = bool(found)
        if found:
            for one in found:
                self._kept.setdefault((one.what, one.name), one)
            if self._first is None or self._first.given == "parameter":
                self._first = self._origin(found) or self._first
            self._say(list(self._kept.values()), self._first)
        if found or self._window.consecutive_skips >= MANY_SKIPS - 1:
            self._origins.begin()
        self._origins.forget()

    def _origin(self, found: list[Found]) -> Origin | None:
        """Of the loss where that is not finite, else of the gradients, else of the parameters: in order of time."""
        for what in WORST:
            for one in (f for f in found if f.what == what):
                origin = self._origins.of(one.number)
                if origin is not None:
                    return origin
        return None

    def _say(self, found: list[Found], origin: Origin | None) -> None:
        worst = max((one.what for one in found), key=WORST.index)
        for what in dict.fromkeys(one.what for one in found):
            mine = [one for one in found if one.what == what]
            attrs: dict[str, Any] = {"what": what, "value": mine[0].value}
            if what != worst:
                attrs["follows"] = True
            if origin is not None and origin.operation:
                attrs |= {"operation": origin.operation, "direction": origin.direction}
            if origin is not None and origin.given and origin.given != "ranks":
                attrs["given"] = True
            self._ledger.put(
                (NonFinite, what),
                Observation(
                    Kind.NON_FINITE,
                    DTYPE_NAMES[mine[0].dtype],
                    ROLES[what],
                    (origin.site if origin is not None else None) or mine[0].site or self._backward_at,
                    module=origin.module if origin is not None else "",
                    detail=f"{_begins(origin)}; {_listed(found)}" if what == worst else "",
                    count=len(mine),
                    attrs=attrs,
                ),
            )


def _begins(origin: Origin | None) -> str:
    """The first operation in words: "div gave nan (forward)"."""
    if origin is None:
        return "the first operation was not observed"
    if not origin.operation:
        return f"a {origin.given} was {origin.value} before any operation of the step"
    if origin.given == "ranks":
        return f"{origin.operation} brought {origin.value} from another rank ({origin.direction})"
    if origin.given:
        return f"{origin.operation} was given a {origin.given} that was {origin.value} already ({origin.direction})"
    return f"{origin.operation} gave {origin.value} of finite inputs ({origin.direction})"


def _listed(found: list[Found]) -> str:
    """ "the loss, the gradients of 2 parameters (fc.weight, fc.bias), 2 parameters"."""
    words = []
    for what in WORST:
        mine = [one for one in found if one.what == what]
        if not mine:
            continue
        names = list(dict.fromkeys(one.name for one in mine if one.name))
        named = f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})" if names else ""
        many = f"{len(mine)} parameter{'s' if len(mine) > 1 else ''}"
        words.append({"loss": "the loss", "gradient": f"the gradient of {many}", "parameter": many}[what] + named)
    return "not finite: " + ", ".join(words)


def _word(value: float) -> str:
    return "nan" if value != value else "inf"


def _norms(tensors: list[Tensor]) -> Tensor:
    """A norm of each tensor, the long ones first, in a dtype that holds it; a NaN or inf among its elements shows."""
    wide = torch.float32 if tensors[0].dtype in LOW else tensors[0].dtype
    sizes = [tensor.numel() for tensor in tensors]
    long = sum(size >= LONG for size in sizes)
    norms = [torch.stack(torch._foreach_norm(tensors[:long], 2, dtype=wide))] if long else []
    for batch in batches(sizes[long:]):
        flat = private.flattened([tensors[long + index] for index in batch]).abs_()
        norms.append(sums(flat.to(wide), [sizes[long + index] for index in batch]))
    return torch.cat(norms)
