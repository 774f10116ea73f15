"""Collects what the interpreter proves, once per place, and turns it into the judge's Facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precaudit.model.vocabulary import Cause, Fact, Kind, Role, Scalar, Site
from precaudit.static.language.values import Dtypes, Spot

IN_ORDER = ("trl", "peft", "deepspeed", "trainer", "lightning", "fabric", "accelerate", "fsdp2", "fsdp1", "ddp")
"""Whose words a fix is in where several are used: what the user writes settings in before what it is built on."""


class Facts:
    """A set of Facts keyed by kind, role, dtype, place and attributes; positions are computed at the end."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], tuple[Spot, Spot | None, str, dict[str, Any]]] = {}

    def add(
        self,
        kind: Kind,
        spot: Spot,
        dtype: Dtypes | str | None = "",
        role: Role | None = None,
        because: tuple[str, Spot | None] | None = None,
        detail: str = "",
        **attrs: Scalar,
    ) -> None:
        """Notes one Fact. Of several possible dtypes the one that bfloat16 comes first in is named."""
        name = dtype if isinstance(dtype, str) else min(dtype) if dtype else ""
        key = (kind, role, name, id(spot.node), tuple(sorted(attrs.items())))
        if key not in self._held:
            text, cause = because if because and because[1] else ("", None)
            self._held[key] = (spot, cause, text, {"detail": detail, "attrs": attrs})

    def take_back(self, spot: Spot, **attrs: Scalar) -> None:
        """Drops what was noted at a place with these attributes, since more is known by now."""
        wanted = tuple(sorted(attrs.items()))
        for key in [key for key in self._held if key[3] == id(spot.node) and key[4] == wanted]:
            del self._held[key]

    def resolve(self, frameworks: Sequence[str] = ()) -> list[Fact]:
        """The Facts with their places in the source, and the frameworks in whose words to say what to do."""
        found = []
        words = ",".join(sorted(frameworks, key=lambda name: (*IN_ORDER, name).index(name)))
        for (kind, role, dtype, _, _), (spot, cause, text, rest) in self._held.items():
            reason = None
            if cause is not None and cause.node is not spot.node:
                reason = Cause(text, site(cause))
            found.append(
                Fact(
                    kind,
                    dtype,
                    role,
                    site(spot),
                    reason,
                    detail=rest["detail"],
                    attrs={**rest["attrs"], "frameworks": words} if words else rest["attrs"],
                )
            )
        return found


def site(spot: Spot) -> Site:
    """Where a node stands; lines and columns from 1."""
    line, column, end_line, end_column = spot.source.place(spot.node)
    return Site(spot.source.path, line, column + 1, end_line, end_column + 1, spot.function)
