"""Positions, counts and angles in a dtype that cannot hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Cause, Role
from ..flow import DTYPE_NAMES, LOW
from . import FORWARD, Registration

if TYPE_CHECKING:
    from ..session import Session

LARGEST_PHASE_ERROR = 0.05
"""Radians. Half a unit in the last place of an angle; past this, neighbouring positions look alike."""
LARGEST_UNKNOWN_ERROR = 1.0
"""Radians: that of an angle past which the dtype does not hold every integer."""


class Positions:
    """PA408, and PA405's counts."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.flow = session.flow
        self.ledger = session.ledger

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("arange",), self.arange, False
        yield FORWARD, ("cumsum",), self.cumsum, False
        yield FORWARD, ("_to_copy",), self.cast, True
        yield FORWARD, ("sin", "cos"), self.angle, False

    def arange(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW:
            self._measure(out, out, out.numel() - 1)
        elif not out.dtype.is_floating_point:
            self.flow.mark(out, position=True)

    def cumsum(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype not in LOW:
            if not out.dtype.is_floating_point:
                self.flow.mark(out, position=True)
            return
        values = args[0]
        if not out.numel() or not self.ledger.measures:
            return
        limit = FLOATING[DTYPE_NAMES[out.dtype]].max_exact_integer
        seen = self.flow.suspect("counts", Role.POSITIONS, out.dtype, "cumsum", representable=True)
        counted = (values == values.round()).all() & (out.abs().amax() >= limit)
        wrong = (torch.cumsum(values.float(), args[1]) != out.float()).sum()

        def use(numbers: list[float]) -> None:
            if numbers[0] and numbers[1]:
                self.flow.confirm(seen, representable=False)
                seen.evidence["positions_wrong"] = numbers[1] / numbers[2]

        self.ledger.defer([counted, wrong, torch.full_like(wrong, out.numel())], use)

    def cast(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        if source.dtype.is_floating_point or source.dtype is torch.bool:
            return
        if "position" in self.flow.of(source):
            self._measure(source, out, None)
        # Any other integers matter only as an angle: timesteps do, masks and labels do not.
        self.flow.mark(out, position=True)

    def _measure(self, exact: Tensor, low: Tensor, last: int | None) -> None:
        """Positions were put into a low dtype; whether they fit is measured."""
        if low.numel() < 3 or not self.ledger.measures:
            return
        seen = self.flow.suspect("positions", Role.POSITIONS, low.dtype, "positions", representable=True)
        limit = FLOATING[DTYPE_NAMES[low.dtype]].max_exact_integer
        if exact is low:
            steps = low.float().diff()
            wrong, largest = (steps != steps[:1]).sum(), low.float().abs().amax()
        else:
            wrong, largest = (low.to(exact.dtype) != exact).sum(), exact.abs().amax().float()

        def use(numbers: list[float]) -> None:
            if numbers[0] and numbers[1] > limit:
                self.flow.confirm(seen, representable=False)
                share = numbers[0] / numbers[2]
                seen.evidence["positions_wrong"] = max(seen.evidence.get("positions_wrong", 0.0), share)
                seen.detail = f"positions up to {numbers[1]:.0f}; exact only up to {limit}"

        self.ledger.defer([wrong, largest, torch.full_like(largest, low.numel())], use)

    def angle(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """sin and cos of low-precision positions × frequencies: the angle itself is rounded."""
        angle = args[0]
        marks = self.flow.of(angle)
        low = angle.dtype in LOW
        dtype, made = (angle.dtype, None) if low else marks.get("rounded", (None, None))
        if dtype is None or not angle.numel() or not self.ledger.measures:
            return
        known = low and "position" in marks
        # Of anything else that no gradient flows to, only what lies past the dtype's integers is surely a position.
        if not known and (angle.requires_grad or not torch.is_grad_enabled()):
            return
        bearable = LARGEST_PHASE_ERROR if known else LARGEST_UNKNOWN_ERROR
        detail = f"{name} of positions times frequencies"
        seen = self.flow.suspect("angle", Role.POSITIONS, dtype, detail, representable=True)
        if made is not None and seen.cause is None:
            seen.cause = Cause(f"they were rounded to {DTYPE_NAMES[dtype]}", made)
        half_step = 2.0 ** -(FLOATING[DTYPE_NAMES[dtype]].mantissa_bits + 1)

        def use(numbers: list[float]) -> None:
            if numbers[0] * half_step > bearable:
                self.flow.confirm(seen, representable=False)
                seen.evidence["phase_error"] = max(seen.evidence.get("phase_error", 0.0), numbers[0] * half_step)

        self.ledger.defer([angle.abs().amax().float()], use)
