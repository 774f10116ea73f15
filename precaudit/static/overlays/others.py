"""Libraries of which no more is known than whether they leave a model's dtypes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import Value
from precaudit.static.overlays import Call
from precaudit.static.overlays.torch import modules, opaque

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def unfamiliar(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that may do anything to a model handed to it, and to its dtypes."""
    for value in (*args, *kwargs.values()):
        modules.escape(run, value)
    return opaque.result(run, [*args, *kwargs.values()], node)


def harmless(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that does not change the dtype of a model handed to it."""
    return opaque.result(run, [*args, *kwargs.values()], node)


CALLS: Mapping[str, Call] = {
    "*": unfamiliar,
    "functools.wraps": harmless,
    "os.*": harmless,
    "copy.*": harmless,
    "wandb.*": harmless,
    "logging.*": harmless,
    "time.*": harmless,
    "sys.*": harmless,
    "json.*": harmless,
    "random.*": harmless,
    "numpy.*": harmless,
}
