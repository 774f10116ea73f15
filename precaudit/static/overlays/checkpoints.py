"""The dtype of a checkpoint that from_pretrained is told no dtype of: what is known of it from names and versions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from glob import glob
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language.values import Dtypes, Opaque, Spot, Value, constant, is_low, join_dtypes
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

KNOWN = framework("transformers").words["checkpoints"]
PINNED = re.compile(
    r"""^[ \t]{0,40}["']?transformers(?:\[[\w,-]{0,80}\])?[ \t]{0,9}(~=|==|>=|>)[ \t]{0,9}(\d{1,9})""", re.MULTILINE
)
REQUIREMENTS = ("requirements.txt", "pyproject.toml", "requirements-train.txt", "setup.cfg")


def asked_for_none(run: Run, name: str, given: Value | None, spot: Spot) -> Dtypes | None:
    """The dtype in which a checkpoint comes that is loaded as it is: low for certain, or None."""
    called = constant(given)
    if isinstance(called, str):
        lower = called.lower()
        if any(fnmatchcase(lower, pattern) for pattern in KNOWN["float32"]):
            return None
        if "/" in called and any(fnmatchcase(lower, pattern) for pattern in KNOWN["low"]):
            return frozenset({"bfloat16"})
    return saved_here(run)


def saved_here(run: Run) -> Dtypes | None:
    """The dtype of what this script itself saved before it loads, where all of that is low."""
    saved = run.training.saved_models
    dtype = saved[0] if saved else None
    for other in saved[1:]:
        dtype = join_dtypes(dtype, other)
    return dtype if is_low(dtype) else None


def saves(run: Run, model: Value) -> None:
    """`model.save_pretrained(...)`: the checkpoint has the dtype of the model."""
    dtype: Dtypes | None = model.store.get("dtype") if isinstance(model, Opaque) else None
    if not isinstance(model, Opaque):
        held = [param.dtype for _, param in modules.parameters(run, model)]
        dtype = held[0] if held and all(other == held[0] for other in held) else None
    run.training.saved_models.append(dtype)


def keeps_dtype(run: Run, spot: Any) -> bool:
    """Whether the transformers that is pinned, or else installed, certainly takes the checkpoint's dtype."""
    from_version: int = KNOWN["keeps_dtype_from"]
    for name in REQUIREMENTS:
        raw = run.read_beside(spot.source, name)
        pinned = PINNED.search(raw.decode("utf-8", "replace")) if raw else None
        if pinned:
            return int(pinned[2]) >= from_version
    return any(int(version) >= from_version for version in _installed())


@cache
def _installed() -> tuple[str, ...]:
    """The major version of the transformers beside the Python that runs, or in the environment that is active."""
    return tuple(
        match[1]
        for folder in _site_packages()
        for path in glob(os.path.join(glob_escaped(folder), "transformers-*.dist-info"))
        if (match := re.search(r"transformers-(\d+)", os.path.basename(path)))
    )


def glob_escaped(folder: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", folder)


def _site_packages() -> Iterator[str]:
    yield from (folder for folder in sys.path if folder.endswith("-packages"))
    active = os.environ.get("VIRTUAL_ENV")
    if active:
        yield from glob(os.path.join(glob_escaped(active), "lib", "python*", "site-packages"))
