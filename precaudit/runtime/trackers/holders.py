"""Which modules hold a parameter, and under which names; finds the tensor again that a leaf was."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .tensors import Leaf, Tensors

Places = list[tuple[weakref.ref[Any], str]]
"""Modules and the names under which they hold something."""
MANY = 10_000
"""Parameters that are remembered without asking whether a module still holds them."""


class Holders:
    """Parameters by their `id`, without a reference to any: their modules tell whether they still hold them."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._places: dict[int, Places] = {}
        self._many = MANY

    def registered(self, parameter: Tensor, module: Any, name: str) -> None:
        """A module got this parameter; the oldest place is asked first."""
        register(self._places.setdefault(id(parameter), []), module, name)
        if len(self._places) > self._many:
            for identity in [identity for identity in self._places if self.parameter(identity) is None]:
                del self._places[identity]
            self._many = max(MANY, 2 * len(self._places))

    def of(self, parameter: Tensor) -> Iterator[tuple[Any, str]]:
        """The modules that hold a parameter, each with its name there."""
        return holding(self._places.get(id(parameter)), parameter)

    def parameter(self, identity: int) -> Tensor | None:
        """The parameter with this `id`, where a module holds it."""
        for ref, name in self._places.get(identity, ()):
            found = held_by(ref(), name)
            if isinstance(found, Tensor) and id(found) == identity:
                return found
        return None

    def find(self, leaf: Leaf) -> Tensor | None:
        """The tensor that a leaf is, where a module holds it, else another with its numbers and its `.grad`."""
        found = self.parameter(leaf.id)
        if found is not None and self._tensors.leaf(found) is leaf:
            return found
        like = leaf.tensor()
        gradient = leaf.gradient.tensor() if leaf.gradient is not None else None
        if like is not None and gradient is not None:
            if gradient.dtype is not like.dtype:
                like.grad_dtype = gradient.dtype
            like.grad = gradient
        return like


def register(places: Places, module: Any, name: str) -> None:
    """Adds a place, and drops those of modules that are gone."""
    places[:] = [place for place in places if place[0]() is not None]
    places.append((weakref.ref(module), name))


def holding(places: Places | None, held: Any) -> Iterator[tuple[Any, str]]:
    """The places where this is still held: none it was taken out of, no slice of the list it is in."""
    for ref, name in places or ():
        module = ref()
        if held is not None and held_by(module, name) is held:
            yield module, name


def held_by(module: Any, name: str) -> Any:
    """What a module holds under this name, by its dicts alone; None of a module that is gone.

    `getattr` would run the user's code: a parametrized weight is computed anew at each look, and the power iteration of
    spectral_norm goes on by a step.
    """
    if module is None:
        return None
    mine = vars(module)
    for box in (mine.get("_parameters"), mine.get("_modules")):
        if box and box.get(name) is not None:
            return box[name]
    return mine.get(name)
