"""Runs every op of the step a second time, in float64, on the companions of what it was given.

And a third time on what it was really given: the difference from the real result is what this op lost itself. In
backward and in the optimizer a fourth time, on companions that began with that stage: how far these are from the real
values was lost in the stage, how far they are from the others was lost before. Where nothing that is given has a
companion, all of these are one.

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
from .forks import Fork, Forks
from .places import PHASES, Place
from .recipes import FACTORIES, LOST, REAL, RUN, VIEW, Recipe, Refused, floats, recipe_of
from .rows import Key, Rows

Given = tuple[list[Any], dict[str, Any]]
"""Arguments of an op, positional and named."""


Entries = dict[int, Companion]
"""id of a tensor that an op is given -> the companion of its storage."""


class Ready(NamedTuple):
    """What was learnt of an op before it ran."""

    recipe: Recipe
    targets: list[Tensor]
    """The floating tensors that it writes to."""
    alone: Given | None = None
    """In float64, what it is really given; read before it is written over."""
    entries: tuple[Entries, ...] = ()
    """What each lineage then held of what it reads."""


class Made(NamedTuple):
    """What an op really gave."""

    fresh: list[Tensor]
    at: list[int]
    """Where each of these stands among its results."""
    out: Any


class Follower:
    """The companions of one step."""

    def __init__(self, guard: Guard, place: Callable[[list[Tensor]], Place], forks: Forks | None = None) -> None:
        self._guard, self._place = guard, place
        self.forks = forks
        """Companions of a step that rounds the operands of its matmuls."""
        self.main = Companions()
        """They began with the step."""
        self.stage = Companions()
        """They began with backward, or with the optimizer's step."""
        self.rows = Rows()
        self.lost: Counter[str] = Counter()
        """Op that could not be followed -> times."""
        self.elements = self.elements_lost = 0
        """Floating numbers computed, and those of them that were not followed."""
        self.watched: dict[int, Tensor | None] = {}
        """Storage of a parameter -> the error of the last write to it, as the norm of what that rounded away."""
        self.layers: dict[str, int] = {}
        """Module -> the record of its last operation in forward."""
        self.on_softmax: Callable[[Tensor, Tensor], None] | None = None
        """Called with what a log-softmax was given, and with what it gave."""
        self.on_reduction: Callable[[list[Tensor]], None] | None = None
        """Called with what is about to be added up over the ranks."""
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
        if recipe.reduces and self.on_reduction is not None:
            with self._guard.unseen():
                self.on_reduction(list(floats(args[1:2])) or list(floats(args[:1])))
        if recipe.how != RUN or not targets:
            return Ready(recipe, targets)
        with self._guard.unseen():
            given = list(floats((*args, *kwargs.values())))
            entries = (_entries(self.main, given), _entries(self.stage, given))
            for target in targets:
                self.main.writable(target)
                if _differs(entries[1]):
                    self.stage.writable(target)
            return Ready(recipe, targets, _converted(recipe, args, kwargs, {}), entries)

    def after(self, ready: Ready, args: Any, kwargs: Any, out: Any) -> None:
        """It has run."""
        fresh = [] if ready.recipe.how == REAL else list(floats((out,)))
        if not fresh and not ready.targets:
            return
        given = list(floats((*args, *kwargs.values())))
        place = self._place(given)  # while gradients are on, if they are
        with self._guard.unseen():
            self._ran(ready, args, kwargs, out, place, given)

    # -- one op

    def _ran(self, ready: Ready, args: Any, kwargs: Any, out: Any, place: Place, given: list[Tensor]) -> None:
        recipe = ready.recipe
        if recipe.how == REAL:
            for target in ready.targets:
                _exact_as_it_is(self.main, target)
                _exact_as_it_is(self.stage, target)
                for fork in self.forks.all if self.forks is not None else ():
                    _exact_as_it_is(fork.values, target)
            return
        memory = {private.storage_key(one) for one in given}
        results = _flat(out)
        at = [at for at, one in enumerate(results) if isinstance(one, Tensor) and _is_new(one, memory)]
        made = Made([results[one] for one in at], at, out)
        reals = [*made.fresh, *ready.targets]
        if not reals:
            return  # a view that its schema does not declare
        count = sum(one.numel() for one in reals)
        self.elements += count
        if not ready.entries:
            stages = {} if place.phase == PHASES[0] else _entries(self.stage, given)
            ready = ready._replace(entries=(_entries(self.main, given), stages))
        entries = ready.entries[0].values()
        partial = any(entry.partial for entry in entries)
        records = [entry.record for entry in entries]
        try:
            if recipe.how == LOST:
                raise Refused
            alone = ready.alone or _converted(recipe, args, kwargs, {})
            own = [*self._results(recipe, alone, made), *recipe.targets(*alone)]
            if self.forks is not None and self.forks.open:
                self._forked(self.forks, ready, args, kwargs, made, place)
            exacts = self._followed(0, ready, args, kwargs, made, own, partial)
            if place.phase != PHASES[0] or ready.entries[1]:
                self._followed(1, ready, args, kwargs, made, own, partial)
        except Exception as error:
            if is_programs_own(error):
                raise
            self.lost[recipe.name] += 1
            self.elements_lost += count
            for tensor in reals:
                self.main.lose(tensor)
                self.stage.lose(tensor)
            return
        key = Key(place.site, place.module, recipe.name, DTYPE_NAMES[reals[0].dtype], place.phase)
        self._book(key, reals, exacts, own, records)
        self._noted(ready, given, made, own)

    def _followed(
        self, which: int, ready: Ready, args: Any, kwargs: Any, made: Made, own: list[Tensor], partial: bool
    ) -> list[Tensor]:
        """Runs the op on the companions of one lineage; where none is given, they are what it gives alone."""
        recipe, lineage, entries = ready.recipe, (self.main, self.stage)[which], ready.entries[which]
        if _differs(entries):
            for target in ready.targets:
                entry = lineage.writable(target)
                if entry is not None:
                    entries[id(target)] = entry
            given = _converted(recipe, args, kwargs, entries)
            exacts = self._results(recipe, given, made)
            memory = {entry.flat.data_ptr() for entry in entries.values() if entry.flat is not None}
            theirs = not any(one.untyped_storage().data_ptr() in memory for one in exacts)
        else:
            exacts, theirs = own[: len(made.fresh)], which == 0
            for target, exact in zip(ready.targets, own[len(made.fresh) :], strict=True):
                entry = lineage.writable(target)
                if entry is not None:
                    entry.view(target).copy_(exact)
        for real, exact in zip(made.fresh, exacts, strict=True):
            lineage.keep(real, exact, partial, theirs)
        if not ready.targets:
            return exacts
        views = []
        for target in ready.targets:
            entry = lineage.find(target)
            if entry is None:
                raise Refused
            entry.partial |= partial
            views.append(entry.view(target))
        return [*exacts, *views]

    def _forked(self, forks: Forks, ready: Ready, args: Any, kwargs: Any, made: Made, place: Place) -> None:
        """Runs the op once more for each format whose numbers it is given, or whose rounding begins with it."""
        recipe, entries = ready.recipe, ready.entries[0]
        matmul = forks.meets(recipe.name, place)
        if matmul:
            forks.measure(recipe, place, _converted(recipe, args, kwargs, {})[0])
        given = list(floats((*args, *kwargs.values())))
        for fork in forks.all:
            own = _entries(fork.values, given)
            rounds = matmul and fork.rounds(place.module)
            if own or rounds:
                self._in_fork(
                    fork, Ready(recipe, ready.targets, None, ({**entries, **own}, own)), args, kwargs, made, rounds
                )

    def _in_fork(self, fork: Fork, ready: Ready, args: Any, kwargs: Any, made: Made, rounds: bool) -> None:
        recipe, (entries, own) = ready.recipe, ready.entries
        for target in ready.targets:
            if id(target) not in own:
                entries[id(target)] = fork.values.branch(target, entries.get(id(target)))
        given = _converted(recipe, args, kwargs, entries)
        if rounds:
            fork.round(recipe.name, given[0])
        for real, value in zip(made.fresh, self._results(recipe, given, made), strict=True):
            fork.values.keep(real, value, False, False)

    def _results(self, recipe: Recipe, given: Given, made: Made) -> list[Tensor]:
        """Runs the op, and gives back those of its results that stand for new ones of the real run."""
        results = _flat(recipe.run(recipe.func, *given, made.out))
        found = [results[at] for at in made.at]
        for real, exact in zip(made.fresh, found, strict=True):
            if exact.shape != real.shape or exact.dtype is not WIDE[real.dtype]:
                raise Refused
        return found

    def _book(self, key: Key, reals: list[Tensor], exacts: list[Tensor], own: list[Tensor], records: list[int]) -> None:
        filled = [at for at, real in enumerate(reals) if real.numel()]
        if not filled:
            return
        alone = None if all(exacts[at] is own[at] for at in filled) else [own[at] for at in filled]
        record = self.rows.add(key, [reals[at] for at in filled], [exacts[at] for at in filled], alone, records)
        for real in reals:
            entry = self.main.find(real)
            if entry is not None:
                entry.record = record
        if key.phase == PHASES[0] and key.module:
            self.layers[key.module] = record

    def _noted(self, ready: Ready, given: list[Tensor], made: Made, own: list[Tensor]) -> None:
        """What the budget asks of single ops: writes to parameters, and the softmax that a loss is made of."""
        for target, exact in zip(ready.targets, own[len(made.fresh) :], strict=True) if self.watched else ():
            key = private.storage_key(target)
            if key in self.watched:
                self.watched[key] = torch.linalg.vector_norm(wide(target) - exact)
        if ready.recipe.name == "_log_softmax" and self.on_softmax is not None:
            self.on_softmax(given[0], made.fresh[0])


def _entries(lineage: Companions, given: list[Tensor]) -> Entries:
    """The companions of what an op is given, where it has any."""
    found: Entries = {}
    for one in given if lineage else ():
        entry = lineage.find(one)
        if entry is not None:
            found[id(one)] = entry
    return found


def _differs(entries: Entries) -> bool:
    """Whether something that is given differs from what it should be."""
    return any(entry.flat is not None for entry in entries.values())


def _converted(recipe: Recipe, args: Any, kwargs: Any, entries: Entries) -> Given:
    """The arguments in float64: what stands for them, or else what they are."""
    widens = recipe.pointwise and not any(True for _ in floats((*args, *kwargs.values())))
    names = {name: at for at, name in recipe.written} if kwargs else {}
    written = frozenset(at for at, _ in recipe.written)
    real = recipe.real

    def convert(value: Any, at: Any) -> Any:
        if isinstance(value, Tensor):
            if at in real:
                return value.detach().clone() if at in written else value.detach()
            if value.dtype in WIDE:
                found = entries.get(id(value))
                return wide(value) if found is None else found.view(value)
            if at in written:
                return value.detach().clone()
            return value.double() if widens and value.dtype is not torch.bool else value
        if isinstance(value, (list, tuple)):
            return [convert(item, at) for item in value]
        return WIDE.get(value, value) if type(value) is torch.dtype else value

    given = {name: convert(value, names.get(name, name)) for name, value in kwargs.items()}
    if recipe.name in FACTORIES:
        given["dtype"] = torch.float64
    return [convert(value, at) for at, value in enumerate(args)], given


def _exact_as_it_is(lineage: Companions, target: Tensor) -> None:
    """What is in this tensor now is what it should be: random numbers, zeros."""
    entry: Companion | None = lineage.find(target)
    if entry is None:
        return
    if target.numel() * target.element_size() == target.untyped_storage().nbytes():
        lineage.forget(target)
    else:
        entry.view(target).copy_(target)


def _is_new(tensor: Tensor, memory: set[int]) -> bool:
    return tensor.dtype in WIDE and tensor.layout is torch.strided and private.storage_key(tensor) not in memory


def _flat(out: Any) -> list[Any]:
    """The results of an op, those inside lists one by one."""
    if isinstance(out, (list, tuple)):
        return [item for one in out for item in _flat(one)]
    return [out]
