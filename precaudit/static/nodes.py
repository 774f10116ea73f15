"""LibCST, imported with plain node classes: its import takes half the time, a parse three quarters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OWN = {"__repr__", "__eq__", "__hash__"}
"""What every node class of LibCST brings itself, so that those a dataclass would make for it are thrown away."""


@contextmanager
def _plain_nodes() -> Iterator[None]:
    """Makes dataclasses that bring their own methods without guards against assignment and without validation.

    A frozen class sets each field through `object.__setattr__`; a node that the parser makes needs no validation, and
    check assigns to none. Where LibCST was imported before, its classes stay as they are.
    """
    made = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def make(cls: type) -> type:
            if not cls.__dict__.keys() >= OWN:
                return made(cls, **options)
            if "__post_init__" in cls.__dict__:
                del cls.__post_init__  # type: ignore[attr-defined]
            return made(cls, **{**options, "repr": False, "eq": False, "frozen": False})

        return make if cls is None else make(cls)

    replaced: Callable[..., Any] = dataclass
    dataclasses.dataclass = replaced
    try:
        yield
    finally:
        dataclasses.dataclass = made


with _plain_nodes():
    import libcst as cst
    from libcst.metadata import CodeRange
    from libcst.metadata.position_provider import PositionProvidingCodegenState

__all__ = ["CodeRange", "PositionProvidingCodegenState", "cst"]
