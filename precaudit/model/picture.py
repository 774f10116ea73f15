"""What a page draws of a trace: sizes of values, one step in time, and what each rank held; counts only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Given(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Histogram(Given):
    """How many elements of one kind and dtype are of which size."""

    what: str
    """"weights", "gradients", "updates", "activations" (results of matmuls), or optimizer state: "AdamW.exp_avg"."""
    dtype: str
    zeros: int
    not_finite: int
    lowest: int
    """The exponent of the first count: its elements are at least 2**lowest and below twice that."""
    counts: list[int]

    @property
    def elements(self) -> int:
        return self.zeros + self.not_finite + sum(self.counts)

    def below(self, exponent: int) -> float:
        """The share of the elements that are not zero and smaller than 2**exponent."""
        few = sum(self.counts[: max(0, exponent - self.lowest)])
        return few / self.elements if self.elements else 0.0

    def from_on(self, exponent: int) -> float:
        """The share of the elements that are at least 2**exponent, or not finite."""
        many = sum(self.counts[max(0, exponent - self.lowest) :]) + self.not_finite
        return many / self.elements if self.elements else 0.0


class Phase(Given):
    """What went on between two moments, in seconds since the step began."""

    name: str
    start: float
    end: float


class Mark(Given):
    """Equal events of one moment."""

    at: float
    what: str
    """"cast", "reduction" or "gradient norm"."""
    source: str
    """The dtype of what went in."""
    target: str
    count: int


class Timeline(Given):
    """One traced step of one rank, by the host's clock; what the trace costs is in it."""

    step: int
    seconds: float
    phases: list[Phase]
    marks: list[Mark]


class Picture(Given):
    """What one rank saw of one step."""

    rank: int = 0
    histograms: list[Histogram] = []
    loss_scale: float = 0.0
    """Of the GradScaler that scaled the gradients; 0 where none was seen."""
    timeline: Timeline | None = None


class RanksHeld(Given):
    """Ranks that held the same dtypes in all roles that are compared."""

    ranks: list[int]
    roles: dict[str, list[str]]
    """Role -> dtypes."""
