"""Literals: finite numbers that are inf in the result's dtype, and guards that round to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role, rounds_to
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, MayEndNow, OpRefused
from ..optable import POINTWISE
from ..process.ledger import Ledger, Observation
from ..sites import in_library, user_site
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from ..trackers.samples import nonfinite
from . import FORWARD, Registration, Watcher

LARGEST = {dtype: FLOATING[name].max for dtype, name in DTYPE_NAMES.items() if name in FLOATING}
GUARDS = frozenset({"add", "clamp_min", "clamp", "maximum", "add_", "clamp_min_", "clamp_"})
INPLACE = frozenset({"add_", "mul_", "masked_fill_", "sub_", "fill_", "clamp_", "clamp_min_"})
GUARDED = {
    "log": "log", "log2": "log", "log10": "log", "div": "div", "reciprocal": "div",
    "rsqrt": "rsqrt", "sqrt": "rsqrt", "pow": "rsqrt",
}  # fmt: skip
"""Ops that a small constant protects from zero -> what the report calls them."""
TIMES = 4
"""How often the results of one line are measured."""


class Constants(Watcher):
    """PA406 and PA407."""

    def __init__(self, bus: Bus, ledger: Ledger, flow: Flow, entering: Entering) -> None:
        self._ledger, self._entering = ledger, entering
        self._bus = bus
        self.flow = flow
        bus.on(OpRefused, self._refused)

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, POINTWISE | INPLACE, self.literal, True
        yield FORWARD, (*GUARDED, *(f"{name}_" for name in GUARDED)), self.guarded, False
        yield FORWARD, ("_to_copy",), self.widened, False

    def literal(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        dtype = out.dtype
        for given in args[1:4]:
            arg = given
            if name in GUARDS and isinstance(given, Tensor) and given.ndim == 0 and given.device.type == "cpu":
                arg = given.item() if given.dtype not in LOW and not given.requires_grad else 0
            if type(arg) not in (float, int) or arg == 0:
                continue
            size = abs(arg)
            if size > LARGEST[dtype] and size != float("inf") and not name.startswith(("clamp", "hardtanh")):
                seen = self.flow.suspect_kind(
                    f"constant {arg}",
                    Kind.CONSTANT,
                    Role.ACTIVATION,
                    dtype,
                    f"{arg:g} in {name}",
                    overflows=True,
                    value=float(arg),
                )
                seen.confirmed = True
                if seen.count <= TIMES:
                    self._ledger.defer(nonfinite(out), self.flow.share(seen, "inf_share"))
            elif (
                size < 1e-4
                and name in GUARDS
                and rounds_to(float(arg), DTYPE_NAMES[dtype]) == "zero"
                and not in_library("torch")
            ):
                self.flow.mark(out, eps=(user_site(), float(arg), dtype))

    def widened(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Autocast, or the script, makes float32 of the guarded value: the zero is still there."""
        if args[0].dtype in LOW and "eps" in self.flow.of(args[0]):
            self.flow.mark(out, eps=self.flow.of(args[0])["eps"])

    def guarded(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """The guarded value reaches the op it was to protect; one without gradient counts if a loss is made of it."""
        name = name.rstrip("_")
        value = args[1] if name == "div" and len(args) > 1 else args[0]
        eps = self.flow.of(value).get("eps")
        if eps is None or (name == "pow" and not (isinstance(args[1], (int, float)) and args[1] < 0)):
            return
        site, number, dtype = eps
        feeds = GUARDED[name]
        seen = self._ledger.once(
            (Constants, site, number, dtype),
            Observation(
                Kind.CONSTANT,
                DTYPE_NAMES[dtype],
                Role.ACTIVATION,
                site,
                detail=f"{number:g} before {feeds}",
                attrs={"overflows": False, "rounds_to": "zero", "feeds": feeds, "value": number},
                confirmed=False,
            ),
        )
        if torch.is_grad_enabled():
            seen.confirmed = True
            return
        self._entering.mark(out, seen)
        if (
            seen.count <= TIMES and self._ledger.measures
        ):  # features need enter no loss: the guard failed where inf came out
            self._ledger.defer(nonfinite(out), self._failed(seen))

    def _failed(self, seen: Observation) -> Callable[[list[float]], None]:
        """A reader of (bad, total, largest): what the guard was to keep away is there."""
        share = self.flow.share(seen, "inf_share")

        def use(values: list[float]) -> None:
            share(values)
            seen.confirmed |= values[0] > 0

        return use

    def _refused(self, event: OpRefused) -> None:
        """torch itself refuses a literal that the tensor's dtype cannot hold."""
        name, args, error = event
        if "cannot be converted to type" not in str(error):
            return
        tensor = next((arg for arg in args if isinstance(arg, Tensor) and arg.dtype in LOW), None)
        value = next((arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)), None)
        if tensor is None:
            return
        said = f"{value:g} in {name}" if value is not None else name
        seen = self.flow.suspect_kind(
            "refused", Kind.CONSTANT, Role.ACTIVATION, tensor.dtype, f"{said}, which torch refuses", overflows=True
        )
        seen.confirmed = True
        self._bus.tell(MayEndNow())
