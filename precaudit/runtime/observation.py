"""A Fact in the making, as whoever sees something puts it down."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..model.vocabulary import Cause, Fact, Kind, Part, Role, Scalar, Site


@dataclass(slots=True)
class Observation:
    """It becomes a Fact when it is confirmed."""

    kind: Kind
    dtype: str = ""
    role: Role | None = None
    site: Site | None = None
    cause: Cause | None = None
    module: str = ""
    detail: str = ""
    count: int = 0
    bytes: int = 0
    attrs: dict[str, Scalar] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    confirmed: bool = True
    """False while it is only a suspicion: a square that has not yet met its rsqrt."""

    def fact(self) -> Fact:
        return Fact(
            kind=self.kind,
            dtype=self.dtype,
            role=self.role,
            site=self.site,
            cause=self.cause,
            module=self.module,
            detail=self.detail,
            count=self.count,
            bytes=self.bytes,
            attrs=dict(self.attrs),
            evidence=dict(self.evidence),
            parts=self.parts,
        )
