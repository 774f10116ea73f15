"""Literals: finite numbers that are inf in the result's dtype, and guards that round to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Kind, Role, Site, rounds_to
from ..optable import POINTWISE
from ..process.ledger import Observation
from ..sites import in_library, user_site
from ..trackers.lineage import DTYPE_NAMES, LOW
from ..trackers.samples import nonfinite
from . import FORWARD, Registration, Watcher

if TYPE_CHECKING:
    from ..session import Session

LARGEST = {dtype: FLOATING[name].max for dtype, name in DTYPE_NAMES.items() if name in FLOATING}
GUARDS = frozenset({"add", "clamp_min", "clamp", "maximum"})
INPLACE = frozenset({"add_", "mul_", "masked_fill_", "sub_", "fill_"})


class Constants(Watcher):
    """PA406 and PA407."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.flow = session.flow

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, POINTWISE | INPLACE, self.literal, True
        yield FORWARD, ("log", "rsqrt", "sqrt", "div", "reciprocal"), self.guarded, True

    def literal(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        dtype = out.dtype
        for arg in args[1:4]:
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
                if seen.count <= 4:
                    self.session.ledger.defer(nonfinite(out), self.flow.share(seen, "inf_share"))
            elif (
                size < 1e-4
                and name in GUARDS
                and rounds_to(float(arg), DTYPE_NAMES[dtype]) == "zero"
                and not in_library("torch")
            ):
                self.flow.mark(out, eps=(user_site(), float(arg)))

    def guarded(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """The guarded value reaches the op it was to protect."""
        value = args[1] if name == "div" and len(args) > 1 else args[0]
        eps = self.flow.of(value).get("eps")
        if eps is None or not torch.is_grad_enabled():
            return
        site, number = eps
        self._report(
            site, number, "rsqrt" if name in ("rsqrt", "sqrt") else "div" if name == "reciprocal" else name, out
        )

    def _report(self, site: Site | None, number: float, feeds: str, out: Any) -> None:
        self.session.once(
            ("eps", site, number, out.dtype),
            Observation(
                Kind.CONSTANT,
                DTYPE_NAMES[out.dtype],
                Role.ACTIVATION,
                site,
                detail=f"{number:g} before {feeds}",
                attrs={"overflows": False, "rounds_to": "zero", "feeds": feeds, "value": number},
            ),
        )


def refused(session: Session, name: str, args: Any, error: BaseException) -> None:
    """torch itself refuses a literal that the tensor's dtype cannot hold."""
    if "cannot be converted to type" not in str(error):
        return
    tensor = next((arg for arg in args if isinstance(arg, Tensor) and arg.dtype in LOW), None)
    value = next((arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)), None)
    if tensor is None:
        return
    said = f"{value:g} in {name}" if value is not None else name
    seen = session.flow.suspect_kind(
        "refused", Kind.CONSTANT, Role.ACTIVATION, tensor.dtype, f"{said}, which torch refuses", overflows=True
    )
    seen.confirmed = True
    session.rank_file.write()
