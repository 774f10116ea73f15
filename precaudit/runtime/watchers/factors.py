"""PA303: numbers in low precision that long-lived values are multiplied by, as an EMA's decay is."""

from __future__ import annotations

from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..optable import COPIES
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.lineage import Flow
from ..trackers.tensors import Place, Record, Tensors
from ..trackers.window import Window
from . import Watcher


class Factors(Watcher):
    """Asked at each in-place write to what lives long."""

    def __init__(self, ledger: Ledger, window: Window, tensors: Tensors, flow: Flow) -> None:
        self._ledger, self._window, self._tensors, self._flow = ledger, window, tensors, flow
        self._since: dict[Record, int] = {}
        """0-d low-precision factors: the clock when each was first met."""

    def wrote(self, name: str, sources: list[Tensor]) -> None:
        """Numbers in low precision that a long-lived value is multiplied by, or what is added to it."""
        if name in ("mul_", "lerp_") and sources and sources[-1].ndim == 0 and sources[-1].dtype in LOW:
            self._low_hyperparameter(Place(self._tensors.learn(sources[-1]), sources[-1]), "decay")
        for source in sources:
            for factor in self._flow.of(source).get("factors", ()):
                self._low_hyperparameter(factor, "decay" if name in COPIES else "factor")

    def _low_hyperparameter(self, number: Place, key: str) -> None:
        """A long-lived 0-d factor in low precision: an EMA decay of 0.999 is 1 in bfloat16.

        One whose making was not seen is long-lived if it is there again later. 0.5 is 0.5 in any dtype.
        """
        record = number.record
        since = self._since.setdefault(record, self._window.clock)
        if record.expired or record.parameter is not None or (record.made_at is None and since == self._window.clock):
            return
        site = record.made_at or user_site()
        seen = self._ledger.once(
            (Factors, record),
            Observation(
                Kind.HOLDS,
                DTYPE_NAMES[number.dtype],
                Role.OPTIMIZER_STATE,
                site,
                detail="a factor that long-lived values are multiplied by",
                attrs={"what": "hyperparameter", "key": key},
                confirmed=not self._ledger.measures,
            ),
        )
        held = number.tensor()
        if seen.count == 1 and held is not None:
            self._ledger.defer([held.float()], lambda values: self._is_rounded(seen, values[0]))

    @staticmethod
    def _is_rounded(seen: Observation, value: float) -> None:
        """0 and 1 are what small numbers and 0.999 become; other sixteenths were meant."""
        seen.confirmed |= value in (0.0, 1.0) or not (value * 16).is_integer()
