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
from ..dtypes import DTYPE_NAMES, LOW
from ..guard import Guard, is_programs_own
from . import exchange
from .companions import WIDE, Companion, Companions, floats, wide
from .effects import Effects
from .forks import Fork, Forks
from .places import PHASES, Place
from .recipes import FACTORIES, LOST, REAL, RUN, SHOWN, VIEW, Recipe, Refused, recipe_of
from .rows import Key, Row, Rows
from .samples import LARGE, MATMULS, Pick, thinned
from .scope import Scope

Given = tuple[list[Any], dict[str, Any]]
"""Arguments of an op, positional and named."""


ANGLES = frozenset(("sin", "cos"))
NOBODY = Row()
"""The row of what is not followed."""
Entries = dict[int, Companion]
"""id of a tensor that an op is given -> the companion of its storage."""


class Ready(NamedTuple):
    """What was learnt of an op before it ran."""

    recipe: Recipe
    given: list[Tensor]
    """The floating tensors that it reads or writes to."""
    targets: list[Tensor]
    """Those that it writes to."""
    place: Place | None = None
    """None where nothing is computed beside it."""
    plan: Plan | None = None
    """Of an op that writes, since what it is given is then written over."""
    shown: exchange.Given | None = None
    """Of a collective."""


class Plan(NamedTuple):
    """What is computed beside one op."""

    row: Row
    looks: bool
    """Its numbers are taken this time."""
    entries: tuple[Entries, Entries, Entries]
    """What each lineage holds of what it reads."""
    alone: Given | None = None
    """In float64, what it is really given; None where nobody asks what it makes of that."""
    pick: Pick | None = None
    """`alone` gives only these elements of its result."""
    left: bool = False
    """It is not followed: what it gives counts as exact."""
    arrives: bool = False
    """It only copies what a collective gave to where its companion is already."""


class Made(NamedTuple):
    """What an op really gave."""

    fresh: list[Tensor]
    at: list[int]
    """Where each of these stands among its results."""
    out: Any


class Follower:
    """The companions of one step."""

    def __init__(
        self,
        guard: Guard,
        place: Callable[[list[Tensor]], Place],
        forks: Forks | None = None,
        scope: Scope | None = None,
        ranks: exchange.Exchange | None = None,
    ) -> None:
        self._guard, self._place = guard, place
        self.scope = scope or Scope()
        self.ranks = ranks or exchange.Exchange(None)
        self.forks = forks
        """Companions of a step that rounds the operands of its matmuls."""
        self.main = Companions()
        """They began with the step."""
        self.stage = Companions()
        """They began with backward, or with the optimizer's step."""
        self.late = Companions()
        """They began with the last sum over the ranks, in backward or after it."""
        self.rows = Rows()
        self.lost: Counter[str] = Counter()
        """Op that could not be followed -> times."""
        self.elements = self.elements_lost = 0
        """Floating numbers computed, and those of them that were not followed."""
        self.sums_gradients: Callable[[], bool] = lambda: False
        """Whether sums over the ranks are now those of gradients."""
        self.watched: dict[int, Tensor | None] = {}
        """Storage of a parameter -> the error of the last write to it, as the norm of what that rounded away."""
        self.effects = Effects()
        self.phases: list[Tensor] = []
        """Of angles that a sine or cosine is taken of, the largest errors."""
        self.layers: dict[str, int] = {}
        """Module -> the record of its last operation in forward."""
        self.on_softmax: Callable[[Tensor, Tensor], None] | None = None
        """Called with what a log-softmax was given, and with what it gave."""
        self.on_reduction: Callable[[list[Tensor]], None] | None = None
        """Called with what is about to be added up over the ranks."""
        self._recipes: dict[int, Recipe] = {}

    def clear_stage(self) -> None:
        """A stage is over: the next one begins from what is there."""
        self.stage.clear()
        self.late.clear()

    # -- what the mode tells

    def before(self, func: Any, args: Any, kwargs: Any) -> Ready | None:
        """An op is about to run; None where there is nothing to do about it."""
        recipe = self._recipes.get(id(func))
        if recipe is None:
            recipe = self._recipes[id(func)] = recipe_of(func)
        if recipe.how == VIEW:
            return None
        given = recipe.given(args, kwargs)
        targets = recipe.targets(args, kwargs) if recipe.written else []
        if recipe.reduces and self.on_reduction is not None:
            with self._guard.unseen():
                self.on_reduction(list(floats(args[1:2])) or list(floats(args[:1])))
        if recipe.how != RUN:
            return Ready(recipe, given, targets)
        return Ready(recipe, given, targets, self._place(given))  # while gradients are on, if they are

    def about_to_write(self, ready: Ready, args: Any, kwargs: Any) -> Ready:
        """Takes what an op that writes is given. To be called unseen, right before it runs."""
        if ready.recipe.how == SHOWN:
            return ready._replace(shown=self._given(ready, args))
        if ready.place is None or not ready.targets:
            return ready
        plan = self._planned(ready, args, kwargs, ready.targets[0])
        for lineage, entries in zip((self.main, self.stage, self.late), plan.entries, strict=True):
            if _differs(entries):
                for target in ready.targets:
                    if id(target) not in entries and (entry := lineage.writable(target)) is not None:
                        entries[id(target)] = entry
        return ready._replace(plan=plan)

    def after(self, ready: Ready, args: Any, kwargs: Any, out: Any) -> None:
        """It has run. To be called unseen."""
        if ready.targets or (ready.recipe.how != REAL and (type(out) is not Tensor or out.dtype in WIDE)):
            self._ran(ready, args, kwargs, out)

    # -- one op

    def _planned(self, ready: Ready, args: Any, kwargs: Any, first: Tensor) -> Plan:
        """Looks up what is known of what an op is given, and sees what has to be computed of this one."""
        recipe, place = ready.recipe, ready.place
        assert place is not None, "only of what is computed"
        keys = _keys(ready.given)
        main, stage = self.main.among(ready.given, keys), self.stage.among(ready.given, keys)
        entries = (main, stage, self.late.among(ready.given, keys))
        if recipe.name == "copy_" and (entry := main.get(id(ready.given[0]))) is not None and entry.awaited:
            entry.awaited = False
            if len(main) == 1:  # what is copied is a backend's own buffer
                return Plan(NOBODY, False, ({}, {}, {}), left=True, arrives=True)
        if self.scope.leaves(place, bool(stage) or _differs(main)):
            return Plan(NOBODY, False, ({}, {}, {}), left=True)
        row = self.rows.row(Key(place.site, place.module, recipe.name, DTYPE_NAMES[first.dtype], place.phase))
        looks = row.looks()
        followed = _differs(main) and (place.phase == PHASES[0] or _differs(stage))
        followed = (followed and _differs(entries[2]) == bool(entries[2])) or self.scope.surveys
        watched = bool(self.watched) and any(private.storage_key(one) in self.watched for one in ready.targets)
        if followed and not (looks or watched):
            return Plan(row, looks, entries)
        thin = thinned(recipe, args, kwargs, first) if followed and not watched and self.forks is None else None
        if thin is not None:
            return Plan(row, looks, entries, _converted(recipe, thin.args, kwargs, {}), thin.pick)
        return Plan(row, looks, entries, _converted(recipe, args, kwargs, {}))

    def _ran(self, ready: Ready, args: Any, kwargs: Any, out: Any) -> None:
        recipe = ready.recipe
        if recipe.how == REAL:
            self._as_they_are(ready.targets)
            return
        made = _made(ready.given, out) if recipe.makes else Made([], [], out)
        reals = [*made.fresh, *ready.targets] if made.fresh else ready.targets
        if not reals:
            return  # a view that its schema does not declare
        count = sum(one.numel() for one in reals)
        self.elements += count
        try:
            if recipe.how == LOST:
                raise Refused
            if recipe.how == SHOWN:
                self._shown(ready, args, out)
                return
            self._followed(ready, args, kwargs, made, reals)
        except Exception as error:
            if is_programs_own(error):
                raise
            self.lost[recipe.name] += 1
            self.elements_lost += count
            for tensor in reals:
                self.main.lose(tensor)
                self.stage.lose(tensor)
                self.late.lose(tensor)

    def _as_they_are(self, written: list[Tensor]) -> None:
        """What these hold now is what they should hold."""
        for target in written:
            _exact_as_it_is(self.main, target)
            _exact_as_it_is(self.stage, target)
            _exact_as_it_is(self.late, target)
            for fork in self.forks.all if self.forks is not None else ():
                _exact_as_it_is(fork.values, target)

    def _followed(self, ready: Ready, args: Any, kwargs: Any, made: Made, reals: list[Tensor]) -> None:
        """Runs the op in float64: on what it was really given, if somebody asks, and on the companions of that."""
        recipe, place = ready.recipe, ready.place
        assert place is not None, "only of what is computed"
        plan = ready.plan or self._planned(ready, args, kwargs, made.fresh[0])
        if plan.left:
            if not plan.arrives:
                self._as_they_are(ready.targets)
            self.elements -= sum(one.numel() for one in reals)
            return
        if self.scope.surveys:
            self._survey(place, plan, recipe, made, reals)
            return
        entries = plan.entries[0].values()
        partial = any(entry.partial for entry in entries)
        records = [entry.record for entry in entries]
        own = self._alone(recipe, plan, made)
        if self.forks is not None and self.forks.open:
            self._forked(self.forks, ready, plan, args, kwargs, made)
        exacts = self._companions(0, ready, plan, args, kwargs, made, own, partial)
        if place.phase != PHASES[0] or plan.entries[1]:
            self._companions(1, ready, plan, args, kwargs, made, own, partial)
        if plan.entries[2]:
            self._companions(2, ready, plan, args, kwargs, made, own, partial)
        self._book(place, plan, reals, exacts, own, records)
        if self.watched and own and plan.pick is None:
            self._watch(ready.targets, own[len(made.fresh) :])
        self._meant(recipe.name, plan, args, made, own)

    def _meant(self, name: str, plan: Plan, args: Any, made: Made, own: list[Tensor] | None) -> None:
        """Of a few operations it is known what their errors do."""
        if name == "_log_softmax" and self.on_softmax is not None:
            self.on_softmax(args[0], made.fresh[0])
        if name in ANGLES and args[0].numel() and (exact := plan.entries[0].get(id(args[0]))) and not exact.partial:
            self.phases.append((wide(args[0]) - exact.view(args[0])).abs().amax())
        if own and made.fresh and plan.pick is None:
            self.effects.gave(name, plan.row, made.fresh[0], own[0])
        self.effects.met(name, args)

    # -- collectives

    def _given(self, ready: Ready, args: Any) -> exchange.Given:
        """The companions of what this rank gives to a collective, before that is written over."""
        entries = self.main.among(ready.given, _keys(ready.given)).values()
        kinds = [self.main.reading, self.stage.reading, self.late.reading if not ready.recipe.reduces else wide]
        return exchange.collective(ready.recipe.name, args, kinds, any(entry.partial for entry in entries))

    def _shown(self, ready: Ready, args: Any, out: Any) -> None:
        """Has the companions of what a collective gives made of those of all ranks."""
        given = ready.shown
        outs = exchange.written(given.shape, args, out) if given is not None else []
        found = self.ranks.run(given, args, outs) if given is not None else None
        if given is None or found is None:
            raise Refused
        (main, stage, late), partial = found
        sums = ready.recipe.reduces and not torch.is_grad_enabled() and self.sums_gradients()
        for at, target in enumerate(outs):
            self.main.write(target, main[at], partial, True)
            self.stage.write(target, stage[at], partial, True)
            if (entry := self.main.find(target)) is not None:
                entry.awaited = exchange.arrives_late(given.shape)
            if sums or self.late:
                self.late.write(target, late[at], partial, True)

    def _survey(self, place: Place, plan: Plan, recipe: Recipe, made: Made, reals: list[Tensor]) -> None:
        """Sees what the op loses itself, and how much memory it would take to follow it."""
        self.scope.met(place, sum(one.numel() for one in made.fresh))
        own = self._alone(recipe, plan, made)
        if own is not None:
            pick = plan.pick or _whole
            pairs = [(pick(real), exact) for real, exact in zip(reals, own, strict=True) if real.numel()]
            if pairs:
                now, exact = [one[0] for one in pairs], [one[1] for one in pairs]
                self.rows.add(plan.row, now, exact, exact, [])

    def _alone(self, recipe: Recipe, plan: Plan, made: Made) -> list[Tensor] | None:
        """What the op makes of what it was really given, or of some of that."""
        if plan.alone is None:
            return None
        if plan.pick is not None:
            made = made._replace(fresh=[plan.pick(one) for one in made.fresh])
        return [*self._results(recipe, plan.alone, made), *recipe.targets(*plan.alone)]

    def _companions(
        self, which: int, ready: Ready, plan: Plan, args: Any, kwargs: Any, made: Made, own: Any, partial: bool
    ) -> list[Tensor]:
        """Runs the op on the companions of one lineage; where none is given, they are what it gives alone."""
        recipe, lineage, entries = ready.recipe, (self.main, self.stage, self.late)[which], plan.entries[which]
        count = len(made.fresh)
        if _differs(entries):
            given = _converted(recipe, args, kwargs, entries)
            exacts = self._results(recipe, given, made) if which == 0 else self._roughly(recipe, given, made)
            theirs = recipe.pointwise or not _shares(exacts, entries)
        else:
            exacts, theirs = own[:count], which == 0
            for target, exact in zip(ready.targets, own[count:], strict=True):
                lineage.write(target, exact, partial, theirs)
        for real, exact in zip(made.fresh, exacts, strict=True):
            lineage.keep(real, exact, partial, theirs)
        if partial:
            for target in ready.targets:
                if (entry := lineage.find(target)) is not None:
                    entry.partial = True
        return exacts

    def _forked(self, forks: Forks, ready: Ready, plan: Plan, args: Any, kwargs: Any, made: Made) -> None:
        """Runs the op once more for each format whose numbers it is given, or whose rounding begins with it."""
        recipe, place, entries = ready.recipe, ready.place, plan.entries[0]
        assert place is not None, "only of what is computed"
        matmul = forks.meets(recipe.name, place)
        if matmul:
            forks.measure(recipe, place, _converted(recipe, args, kwargs, {})[0])
        keys = _keys(ready.given)
        for fork in forks.all:
            own = fork.values.among(ready.given, keys)
            rounds = matmul and fork.rounds(place.module)
            if own or rounds:
                given = {**entries, **own}
                for target in ready.targets:
                    if id(target) not in own:
                        given[id(target)] = fork.values.branch(target, entries.get(id(target)))
                self._in_fork(fork, recipe, given, args, kwargs, made, rounds)

    def _in_fork(
        self, fork: Fork, recipe: Recipe, entries: Entries, args: Any, kwargs: Any, made: Made, rounds: bool
    ) -> None:
        given = _converted(recipe, args, kwargs, entries)
        if rounds:
            fork.round(recipe.name, given[0])
        for real, value in zip(made.fresh, self._results(recipe, given, made), strict=True):
            fork.values.keep(real, value, False, False)

    def _roughly(self, recipe: Recipe, given: Given, made: Made) -> list[Tensor]:
        """A large matmul of low numbers in float32: they are rounded ten thousand times as much as that rounds."""
        real = made.fresh[0] if made.fresh else None
        if recipe.name not in MATMULS or real is None or real.dtype not in LOW or real.numel() < LARGE:
            return self._results(recipe, given, made)
        args = [one.float() if isinstance(one, Tensor) else one for one in given[0]]
        return [recipe.call(*args, **given[1]).double()]

    def _results(self, recipe: Recipe, given: Given, made: Made) -> list[Tensor]:
        """Runs the op, and gives back those of its results that stand for new ones of the real run."""
        run = recipe.run(recipe.call, *given, made.out)
        if not made.fresh:
            return []
        results = _flat(run)
        found = [results[at] for at in made.at]
        for real, exact in zip(made.fresh, found, strict=True):
            if exact.shape != real.shape or exact.dtype is not WIDE[real.dtype]:
                raise Refused
        return found

    def _book(
        self, place: Place, plan: Plan, reals: list[Tensor], exacts: list[Tensor], own: Any, records: list[int]
    ) -> None:
        """Has the numbers of the op taken; of the optimizer, where all parameters take one line, at some times only."""
        record = -1
        filled = [at for at, real in enumerate(reals) if real.numel()]
        if filled and (plan.looks or place.phase != PHASES[3]):
            pick = plan.pick or _whole
            exacts = [*exacts, *map(self._exact, reals[len(exacts) :])]
            now, exact = [pick(reals[at]) for at in filled], [pick(exacts[at]) for at in filled]
            alone = [own[at] for at in filled] if own is not None and plan.looks else None
            record = self.rows.add(plan.row, now, exact, alone, records)
        for real in reals:
            if (entry := self.main.find(real)) is not None:
                entry.record = record
        if place.phase == PHASES[0] and place.module and filled:
            self.layers[place.module] = record

    def _exact(self, real: Tensor) -> Tensor:
        """What stands for a tensor that was written to."""
        found = self.main.of(real)
        if found is None:
            raise Refused
        return found

    def _watch(self, targets: list[Tensor], own: list[Tensor]) -> None:
        """Keeps what the last write to each parameter rounded away."""
        for target, exact in zip(targets, own, strict=True):
            key = private.storage_key(target)
            if key in self.watched:
                self.watched[key] = torch.linalg.vector_norm(wide(target) - exact)


def _shares(exacts: list[Tensor], entries: Entries) -> bool:
    """Whether some result lies in the memory of what was given."""
    memory = {entry.memory for entry in entries.values()}
    return any(private.storage_key(one) in memory for one in exacts)


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _made(given: list[Tensor], out: Any) -> Made:
    """The results of an op that are new memory."""
    results = _flat(out)
    if len(results) == 1 and not (isinstance(results[0], Tensor) and results[0].dtype in WIDE):
        return Made([], [], out)
    memory = set(_keys(given))
    at = [at for at, one in enumerate(results) if isinstance(one, Tensor) and _is_new(one, memory)]
    return Made([results[one] for one in at], at, out)


def _keys(tensors: list[Tensor]) -> list[int]:
    try:
        return [private.storage_address(one) for one in tensors]
    except private.NO_STORAGE:
        return [private.storage_key(one) for one in tensors]


def _differs(entries: Entries) -> bool:
    """Whether something that is given differs from what it should be."""
    for entry in entries.values():  # noqa: SIM110 - a generator would take twice as long
        if entry.differs:
            return True
    return False


def _converted(recipe: Recipe, args: Any, kwargs: Any, entries: Entries) -> Given:
    """The arguments in float64: what stands for them, or else what they are."""
    if recipe.tensors is None or kwargs:
        return _converted_all(recipe, args, kwargs, entries)
    given = list(args)
    floats_given = False
    for at, value in enumerate(args):
        if isinstance(value, Tensor):
            if value.dtype in WIDE:
                found = entries.get(id(value))
                given[at] = wide(value) if found is None else found.view(value)
                floats_given = True
            elif at in recipe.positions:
                given[at] = value.detach().clone()
        elif type(value) is torch.dtype:
            given[at] = WIDE.get(value, value)
    if recipe.pointwise and not floats_given:
        given = [_widened(one) for one in given]
    return given, {}


def _widened(value: Any) -> Any:
    """An integer tensor that a pointwise op makes floating numbers of, in float64."""
    return value.double() if isinstance(value, Tensor) and value.dtype is not torch.bool else value


def _converted_all(recipe: Recipe, args: Any, kwargs: Any, entries: Entries) -> Given:
    """The same where there are lists or names among them."""
    widens = recipe.pointwise and not recipe.given(args, kwargs)
    names = {name: at for at, name in recipe.written} if kwargs else {}
    written, real = recipe.positions, recipe.real

    def convert(value: Any, at: Any) -> Any:
        if isinstance(value, Tensor):
            if at in real:
                return value.detach().clone() if at in written else value.detach()
            if value.dtype in WIDE:
                found = entries.get(id(value))
                return wide(value) if found is None else found.view(value)
            if at in written:
                return value.detach().clone()
            return _widened(value) if widens else value
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
