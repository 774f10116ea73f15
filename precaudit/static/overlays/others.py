"""Libraries of which no more is known than whether they leave a model's dtypes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import Value
from precaudit.static.overlays import Call
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def unfamiliar(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that may do anything to a model handed to it, and to its dtypes."""
    for value in (*args, *kwargs.values()):
        modules.escape(torch, value)
    return torch.opaque_result([*args, *kwargs.values()], node)


def harmless(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A library that does not change the dtype of a model handed to it."""
    return torch.opaque_result([*args, *kwargs.values()], node)


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
