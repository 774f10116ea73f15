"""What libraries give back when they are called: one overlay per library, found by being here; nothing lists them.

An overlay is a module here (torch's is `torch/table.py`) with a table `CALLS`. What else it may have stands in
`Overlay`; of the operations that it tells of, it makes no Fact by itself where a detector can.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from precaudit.static.language.values import Class, Function, Value

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

Call = Callable[["Run", str, list[Value], dict[str, Value], Any], Value]
"""torch, dotted name, arguments, keywords, node -> what the call returns."""
Method = Callable[["Run", Any, str, list[Value], dict[str, Value], Any], Value]
"""torch, object, name of the method, arguments, keywords, node -> what the call returns."""


class Overlay(Protocol):
    """What the module of a library may define; everything but `CALLS` may be left out."""

    CALLS: Mapping[str, Call]
    """Dotted name -> what calling it means. A `*` in the middle stands for any packages, at the end for all inside."""
    BASES: Mapping[str, Call]
    """Dotted name of a class of the library -> what its `__init__` does for a class that derives from it."""
    METHODS: Mapping[str, Method]
    """Dotted name of a class of the library -> what its methods do."""

    ON_UNKNOWN: Mapping[str, Method]
    """Name of a method that objects of this library alone have -> what it does on an object of no known class."""

    def context(self, cls: Class, function: Function) -> Any:
        """The region in which the library calls this method of a class under check, None where there is none."""

    def hook_arguments(self, cls: Class, name: str) -> dict[str, Value]:
        """What is known of the arguments with which the library calls this method of a class under check."""

    def argument(self, run: Run, function: Function, name: str) -> Value | None:
        """What a decorator of the library hands to a function under this name where its caller does not."""

    def returned(self, run: Run, cls: Class, name: str, value: Value, node: Any) -> None:
        """Notes what this method of a class under check gives back to the library."""

    def finish(self, run: Run) -> None:
        """Says what only the whole file can tell."""


@cache
def found() -> tuple[Any, ...]:
    """The overlays of this folder, in the order of their names."""
    names = sorted(f"{m.name}.table" if m.ispkg else m.name for m in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(module for module in modules if hasattr(module, "CALLS"))


@cache
def answering(question: str) -> tuple[Callable[..., Any], ...]:
    """What the overlays that define `question` define under that name."""
    return tuple(getattr(overlay, question) for overlay in found() if hasattr(overlay, question))


@cache
def _calls() -> Mapping[str, Call]:
    return {name: call for overlay in found() for name, call in overlay.CALLS.items()}


@cache
def bases() -> Mapping[str, Call]:
    """Class of a library -> what its `__init__` does."""
    return {name: call for overlay in found() for name, call in getattr(overlay, "BASES", {}).items()}


@cache
def methods() -> Mapping[str, Method]:
    """Class of a library -> what its methods do."""
    return {name: method for overlay in found() for name, method in getattr(overlay, "METHODS", {}).items()}


@cache
def of_unknown() -> Mapping[str, Method]:
    """Name of a method -> what it does on an object of no known class."""
    return {name: method for overlay in found() for name, method in getattr(overlay, "ON_UNKNOWN", {}).items()}


@cache
def meaning(name: str) -> Call:
    """What calling a dotted name means, by the narrowest key that fits it."""
    calls = _calls()
    front, _, last = name.rpartition(".")
    keys = [name, f"{name.partition('.')[0]}.*.{last}", f"*.{last}"]
    while front:
        keys.append(f"{front}.*")
        front = front.rpartition(".")[0]
    return next((calls[key] for key in keys if key in calls), calls["*"])


def forget() -> None:
    """Looks for overlays anew the next time."""
    for known in (found, answering, _calls, bases, methods, of_unknown, meaning):
        known.cache_clear()
