"""Which operations autocast runs low, in float32 or refuses, per device: `rules/profiles/autocast-*.toml`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from precaudit.disk import read_text
from precaudit.foreign import parse_toml
from precaudit.shipped import rules_folder


class Table(NamedTuple):
    """Operation names by what autocast does with them."""

    default_dtype: str
    lower: frozenset[str]
    float32: frozenset[str]
    banned: frozenset[str]
    low_inside: frozenset[str]
    """Of `float32`: a step inside runs in the dtype that it is given."""


@cache
def table(device: str) -> Table:
    """The table of "cuda" or "cpu"."""
    raw = parse_toml(read_text(rules_folder() / "profiles" / f"autocast-{device}.toml"))
    lists = (frozenset(raw.get(name, ())) for name in ("lower", "float32", "banned", "low_inside"))
    return Table(raw["default_dtype"], *lists)


def table_for(devices: frozenset[str]) -> Table:
    """CPU's table only where the device is certainly the CPU; CUDA's otherwise."""
    return table("cpu" if devices == {"cpu"} else "cuda")
