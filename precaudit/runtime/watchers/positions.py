"""Positions, counts and angles in a dtype that cannot hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import FLOATING, Cause, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..process.ledger import Ledger
from ..trackers.lineage import Flow
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import FORWARD, Registration, Watcher

LARGEST_PHASE_ERROR = 0.05
"""Radians. Half a unit in the last place of an angle; past this, neighbouring positions look alike."""
LARGEST_UNKNOWN_ERROR = 1.0
"""Radians: that of an angle past which the dtype does not hold every integer."""
SHORTEST_TABLE = 64
"""Steps of a noise schedule from which on it is looked at."""
FEWEST_REPEATED = 32
"""Rows past the dtype's integers; every second of them is the one before."""
COMPARED = sys.maxsize
"""Stands for a clock: the table was looked at."""


class Positions(Watcher):
    """PA408, and PA405's counts."""

    def __init__(self, ledger: Ledger, window: Window, tensors: Tensors, flow: Flow) -> None:
        self._tensors = tensors
        self._window = window
        self.flow = flow
        self.ledger = ledger

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("arange",), self.arange, False
        yield FORWARD, ("cumsum",), self.cumsum, False
        yield FORWARD, ("_to_copy",), self.cast, True
        yield FORWARD, ("sin", "cos"), self.angle, False
        yield FORWARD, ("mul", "_to_copy"), self.rows, False
        yield FORWARD, ("index", "index_select", "gather"), self.schedule, False

    def arange(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if out.dtype in LOW:
            self.flow.mark(out, position=True)
            if self.ledger.measures:
                self._measure(torch.arange(*args, dtype=torch.float32, device=out.device), out)
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
            self._measure(source, out)
        # Any other integers matter only as an angle: timesteps do, masks and labels do not.
        self.flow.mark(out, position=True)

    def _measure(self, exact: Tensor, low: Tensor) -> None:
        """Positions were put into a low dtype; whether they fit is measured."""
        if low.numel() < 3 or not self.ledger.measures:
            return
        seen = self.flow.suspect("positions", Role.POSITIONS, low.dtype, "positions", representable=True)
        limit = FLOATING[DTYPE_NAMES[low.dtype]].max_exact_integer
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

    def rows(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A table by position, made before anything was watched: its rows repeat where the dtype's integers do."""
        for table in args[:2]:
            if not isinstance(table, Tensor) or table.ndim < 2 or not self._is_table(table):
                continue
            at = max(range(table.ndim - 1), key=table.shape.__getitem__)
            length, limit = table.shape[at], FLOATING[DTYPE_NAMES[table.dtype]].max_exact_integer
            if length < limit + FEWEST_REPEATED:
                continue
            rows = table.movedim(at, 0)
            rows = rows.flatten(1, -2)[:, 0] if rows.ndim > 2 else rows
            places = torch.arange(length, dtype=torch.float32, device=table.device).to(table.dtype)
            repeat, wanted = (rows[1:] == rows[:-1]).all(-1), places[1:] == places[:-1]
            detail = f"a table of {length} positions repeats its rows from {limit} on"
            self._compare(table, detail, [(repeat != wanted).sum(), wanted.sum()], lambda n: n[0] * 50 <= n[1])

    def schedule(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A buffer that rises or falls with its index, in steps of the last place that its dtype keeps, or of none."""
        table = args[0]
        if table.ndim != 1 or len(table) < SHORTEST_TABLE or table.dtype.itemsize != 2:
            return
        if self._tensors.of(table).low_buffer is None or not self._is_table(table):
            return
        steps, places = table.float().diff(), table.contiguous().view(torch.int16).int().diff().abs()
        falls = (steps >= 0).all() | (steps <= 0).all()
        detail = f"a schedule of {len(table)} steps gives the same value to neighbouring ones"
        numbers = [falls, (places == 0).sum(), (places == 1).sum(), (places > 1).sum()]
        self._compare(table, detail, numbers, lambda n: n[0] > 0 and n[1] * 10 >= len(table) and n[2] >= n[3])

    def _is_table(self, table: Tensor) -> bool:
        """Whether this is low, takes no gradient, and was met before, in another micro-batch; asked once of each."""
        if table.dtype not in LOW or table.requires_grad or not self.ledger.measures:
            return False
        known = self._tensors.learn(table)
        now, first = self._window.clock, known.table_since
        if first is None:
            known.table_since = now
        elif first < now:
            known.table_since = COMPARED
        return first is not None and first < now

    def _compare(self, table: Tensor, detail: str, numbers: list[Tensor], wrong: Callable[[list[float]], bool]) -> None:
        seen = self.flow.suspect("table", Role.POSITIONS, table.dtype, detail, representable=True)
        made = self._tensors.of(table).low_buffer

        def use(values: list[float]) -> None:
            if wrong(values):
                self.flow.confirm(seen, representable=False)
                seen.site = made.site if made is not None else seen.site

        self.ledger.defer(numbers, use)
