"""Runs every op of the step a second time, in float64, on the companions of what it was given.

And a third time on what it was really given: the difference from the real result is what this op lost itself. Where
nothing that is given has a companion the two are one.

Known limitations: what passes through a Python number is as rounded as it was; memory that is written behind torch's
back (numpy, a kernel called directly) keeps a companion that is no longer its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..guard import Guard, is_programs_own
from .companions import WIDE, Companion, Companions, wide
from .places import Place
from .recipes import FACTORIES, LOST, REAL, RUN, VIEW, Recipe, Refused, floats, recipe_of
from .rows import Key, Rows

Given = tuple[list[Any], dict[str, Any]]
"""Arguments of an op, positional and named."""


class Ready(NamedTuple):
    """What was learnt of an op before it ran."""

    recipe: Recipe
    targets: list[Tensor]
    """The floating tensors that it writes to."""
    alone: Given | None
    """In float64, what it is really given; read before it is written over."""
    known: bool
    """Something it reads has a companion."""


class Follower:
    """The companions of one step."""

    def __init__(self, guard: Guard, place: Callable[[list[Tensor]], Place]) -> None:
        self._guard, self._place = guard, place
        self.main = Companions()
        self.rows = Rows()
        self.lost: Counter[str] = Counter()
        """Op that could not be followed -> times."""
        self.elements = self.elements_lost = 0
        """Floating numbers computed, and those of them that were not followed."""
        self._recipes: dict[int, Recipe] = {}

    # -- what the mode tells

    def before(self, func: Any, args: Any, kwargs: Any) -> Ready | None:
        """An op is about to run; None where there is nothing to do about it."""
        recipe = self._recipes.get(id(func))
        if recipe is None:
            recipe = self._recipes[id(func)] = recipe_of(func)
        if recipe.how == VIEW:
            return None
        targets = recipe.targets(args, kwargs) if recipe.written else []
        if recipe.how != RUN or not targets:
            return Ready(recipe, targets, None, False)
        with self._guard.unseen():
            known = self._knows(args, kwargs)
            for target in targets:
                self.main.writable(target)
            return Ready(recipe, targets, self._converted(recipe, args, kwargs, None), known)

    def after(self, ready: Ready, args: Any, kwargs: Any, out: Any) -> None:
        """It has run."""
        fresh = [] if ready.recipe.how == REAL else list(floats((out,)))
        if not fresh and not ready.targets:
            return
        place = self._place(list(floats((*args, *kwargs.values()))))  # while gradients are on, if they are
        with self._guard.unseen():
            self._ran(ready, args, kwargs, out, place)

    # -- one op

    def _ran(self, ready: Ready, args: Any, kwargs: Any, out: Any, place: Place) -> None:
        recipe = ready.recipe
        if recipe.how == REAL:
            for target in ready.targets:
                self._exact_as_it_is(target)
            return
        given = list(floats((*args, *kwargs.values())))
        memory = {private.storage_key(one) for one in given}
        made = [at for at, one in enumerate(_flat(out)) if isinstance(one, Tensor) and _is_new(one, memory)]
        fresh = [_flat(out)[at] for at in made]
        if not fresh and not ready.targets:
            return  # a view that its schema does not declare
        count = sum(one.numel() for one in (*fresh, *ready.targets))
        self.elements += count
        entries = [entry for entry in map(self.main.find, given) if entry is not None]
        partial = any(entry.partial for entry in entries)
        try:
            if recipe.how == LOST:
                raise Refused
            exacts, alone, own = self._both(ready, args, kwargs, out, made)
        except Exception as error:
            if is_programs_own(error):
                raise
            self.lost[recipe.name] += 1
            self.elements_lost += count
            for tensor in (*fresh, *ready.targets):
                self.main.lose(tensor)
            return
        records = [entry.record for entry in entries]
        kept = [self.main.keep(real, exact, partial, own) for real, exact in zip(fresh, exacts, strict=False)]
        held = [*kept, *map(self.main.find, ready.targets)]
        reals = [*fresh, *ready.targets]
        key = Key(place.site, place.module, recipe.name, DTYPE_NAMES[reals[0].dtype], place.phase)
        self._book(key, reals, exacts, alone, records, held, partial)

    def _book(
        self,
        key: Key,
        reals: list[Tensor],
        exacts: list[Tensor],
        alone: list[Tensor] | None,
        records: list[int],
        held: list[Companion | None],
        partial: bool,
    ) -> None:
        filled = [at for at, real in enumerate(reals) if real.numel()]
        if not filled:
            return
        chosen = None if alone is None else [alone[at] for at in filled]
        record = self.rows.add(key, [reals[at] for at in filled], [exacts[at] for at in filled], chosen, records)
        for entry in held:
            if entry is not None:
                entry.record = record
                entry.partial |= partial

    def _both(
        self, ready: Ready, args: Any, kwargs: Any, out: Any, made: list[int]
    ) -> tuple[list[Tensor], list[Tensor] | None, bool]:
        """What the op should have given and, where its inputs had errors, what float64 makes of them as they were.

        Also whether the first are in memory of their own.
        """
        recipe = ready.recipe
        alone = ready.alone or self._converted(recipe, args, kwargs, None)
        found = self._results(recipe, alone, out, made)
        known = ready.known or self._knows(args, kwargs)
        if not known or (ready.targets and not ready.known):
            written = recipe.targets(*alone)
            for target, exact in zip(ready.targets, written, strict=True):
                self._view(target).copy_(exact)
            return [*found, *written], None, True
        given = self._converted(recipe, args, kwargs, self.main)
        exacts = self._results(recipe, given, out, made)
        memory = {private.storage_key(one) for one in floats((*given[0], *given[1].values()))}
        own = not any(private.storage_key(one) in memory for one in exacts)
        return [*exacts, *map(self._view, ready.targets)], [*found, *recipe.targets(*alone)], own

    def _results(self, recipe: Recipe, given: Given, out: Any, made: list[int]) -> list[Tensor]:
        """Runs the op, and gives back those of its results that stand for new ones of the real run."""
        results = _flat(recipe.run(recipe.func, *given, out))
        found = [results[at] for at in made]
        for real, exact in zip((_flat(out)[at] for at in made), found, strict=True):
            if exact.shape != real.shape or exact.dtype is not WIDE[real.dtype]:
                raise Refused
        return found

    def _knows(self, args: Any, kwargs: Any) -> bool:
        """Whether something that is given differs from what it should be."""
        found = map(self.main.find, floats((*args, *kwargs.values())))
        return any(entry is not None and entry.flat is not None for entry in found)

    def _view(self, target: Tensor) -> Tensor:
        found = self.main.of(target)
        if found is None:
            raise Refused
        return found

    # -- arguments

    def _converted(self, recipe: Recipe, args: Any, kwargs: Any, companions: Companions | None) -> Given:
        """The arguments in float64: what stands for them in `companions`, or else what they are."""
        widens = recipe.pointwise and not any(True for _ in floats((*args, *kwargs.values())))
        written = {at for at, _ in recipe.written}

        def convert(value: Any, at: Any) -> Any:
            if isinstance(value, Tensor):
                if value.dtype not in WIDE:
                    if at in written:
                        return value.detach().clone()
                    return value.double() if widens and value.dtype is not torch.bool else value
                if at in recipe.real:
                    return value.detach().clone() if at in written else value.detach()
                found = companions.of(value) if companions is not None else None
                return wide(value) if found is None else found
            if isinstance(value, (list, tuple)):
                return [convert(item, at) for item in value]
            return WIDE.get(value, value) if isinstance(value, torch.dtype) else value

        names = {name: at for at, name in recipe.written}
        given = {name: convert(value, names.get(name, name)) for name, value in kwargs.items()}
        if recipe.name in FACTORIES:
            given["dtype"] = torch.float64
        return [convert(value, at) for at, value in enumerate(args)], given

    # -- what is not run

    def _exact_as_it_is(self, target: Tensor) -> None:
        """What is in this tensor now is what it should be: random numbers, zeros."""
        entry = self.main.find(target)
        if entry is None:
            return
        if target.numel() * target.element_size() == target.untyped_storage().nbytes():
            self.main.forget(target)
        else:
            entry.view(target).copy_(target)


def _is_new(tensor: Tensor, memory: set[int]) -> bool:
    return tensor.dtype in WIDE and tensor.layout is torch.strided and private.storage_key(tensor) not in memory


def _flat(out: Any) -> list[Any]:
    """The results of an op, those inside lists one by one."""
    if isinstance(out, (list, tuple)):
        return [item for one in out for item in _flat(one)]
    return [out]
