"""The dtype of a checkpoint that from_pretrained is told no dtype of: what is known of it from names and versions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from glob import glob
from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.foreign import ForeignError, parse_json
from precaudit.model.frameworks import framework
from precaudit.static.language.values import Dtypes, Opaque, Spot, Value, constant, is_low, join_dtypes
from precaudit.static.overlays.torch import modules, opnames

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

KNOWN = framework("transformers").words["checkpoints"]
ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
"""An owner and a name; a folder may look like that too."""
PINNED = re.compile(
    r"""^[ \t]{0,40}["']?transformers(?:\[[\w,-]{0,80}\])?[ \t]{0,9}(~=|==|>=|>|<)[ \t]{0,9}(\d{1,9})""", re.MULTILINE
)
REQUIREMENTS = ("requirements.txt", "pyproject.toml", "requirements-train.txt", "setup.cfg")


class Comes(NamedTuple):
    """The low dtype in which a checkpoint comes that is loaded as it is; not `known`: as most of the hub's do."""

    dtype: Dtypes
    known: bool


def asked_for_none(run: Run, given: Value | None, spot: Spot) -> Comes | None:
    """What a checkpoint comes in of which no dtype is asked; None where that is wide, or where it cannot be told."""
    called = constant(given)
    if isinstance(called, str):
        says = _own_config(run, called, spot)
        if says is not None:
            return Comes(says, known=True) if is_low(says) else None
        lower = called.lower()
        if any(fnmatchcase(lower, pattern) for pattern in KNOWN["float32"]):
            return None
        if ON_THE_HUB.fullmatch(called):
            return Comes(frozenset({"bfloat16"}), known=False)
    saved = saved_here(run)
    return Comes(saved, known=True) if saved is not None else None


def _own_config(run: Run, folder: str, spot: Spot) -> Dtypes | None:
    """The dtype that the config.json of a checkpoint in a folder of the project names; None where there is none."""
    raw = run.read_beside(spot.source, f"{folder}/config.json")
    try:
        config = parse_json(raw.decode()) if raw else None
    except (ForeignError, UnicodeDecodeError):
        return None
    named = config.get("dtype", config.get("torch_dtype")) if isinstance(config, dict) else None
    dtype = opnames.DTYPE_NAMES.get(str(named).removeprefix("torch."))
    return frozenset({dtype}) if dtype is not None else None


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


def keeps_dtype(run: Run, spot: Any) -> bool | None:
    """Whether the transformers that is pinned, or else installed, takes the checkpoint's dtype; None: nobody knows."""
    from_version: int = KNOWN["keeps_dtype_from"]
    for name in REQUIREMENTS:
        raw = run.read_beside(spot.source, name)
        pinned = PINNED.search(raw.decode("utf-8", "replace")) if raw else None
        if pinned:
            sign, version = pinned[1], int(pinned[2])
            if sign == "<":
                return False if version <= from_version else None
            return True if version >= from_version else False if sign in ("==", "~=") else None
    installed = [int(version) for version in _installed()]
    return max(installed) >= from_version if installed else None


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
