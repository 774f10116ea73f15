"""What the frameworks of this process say together: found by the classes of what is seen, each asked in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import (
    Bus,
    FactsAsked,
    GradientReset,
    MicroBatchBegan,
    ModuleFound,
    ModuleRegistered,
    ParameterRegistered,
    StepBegan,
    WrapperMade,
)
from ..guard import Guard
from ..imports import when_imported
from ..parts import Parts, find
from ..patching import Undo, put_in
from ..process.ledger import Observation
from ..sites import selves_on_stack, user_site
from ..trackers.claims import Account, Claim, Claimed, Declaration, SumsClaimed
from ..trackers.optimizers import parameters
from ..trackers.tensors import Record, Tensors
from . import Framework


class Frameworks(Account):
    """The frameworks of one process, each made when an object of it is first seen or its module was imported."""

    def __init__(self, bus: Bus, guard: Guard, parts: Parts, tensors: Tensors) -> None:
        self._bus, self._guard, self._parts, self._tensors = bus, guard, parts, tensors
        self._kinds = sorted(find(__name__.rpartition(".")[0], Framework), key=lambda one: one.order)
        self._claimed: list[Record] = []
        """What the newest account claims."""
        self._of_class: dict[type, tuple[Framework, ...]] = {}
        self._made: dict[type[Framework], Framework | None] = {}
        """None of one that failed."""
        self.met: list[Framework] = []
        """Those of which an object was seen, in the order in which they are asked."""
        self._declared: dict[Role, list[Declaration]] | None = None
        """The declarations of each role, until something new is met."""
        self._undo: list[Undo] = []
        bus.on(ParameterRegistered, self._parameter_registered)
        bus.on(ModuleRegistered, lambda event: self.meet(event.module, user_site))
        bus.on(ModuleFound, self._module_found)
        bus.on(WrapperMade, lambda event: self.meet(event.made, user_site))
        bus.on(MicroBatchBegan, self._micro_batch_began)
        bus.on(StepBegan, lambda event: self._look(event.optimizer, parameters(event.optimizer)))
        bus.on(FactsAsked, lambda event: event.told.extend(told for _, told in self._answers("observes")))

    def install(self) -> Iterable[Undo]:
        """Waits for the frameworks whose objects come too late to be patched."""
        awaited: dict[str, list[type[Framework]]] = {}
        for kind in self._kinds:
            for module in kind.awaits:
                awaited.setdefault(module, []).append(kind)
        yield self._take_out
        yield when_imported({name: partial(self._imported, who) for name, who in awaited.items()})

    def _take_out(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _imported(self, kinds: Iterable[type[Framework]]) -> None:
        for kind in kinds:
            self._framework(kind)

    # -- meeting the frameworks

    def _parameter_registered(self, event: ParameterRegistered) -> None:
        self.meet(event.parameter, user_site)
        self.meet(event.module, user_site)

    def _module_found(self, event: ModuleFound) -> None:
        for module in event.module.modules():
            self.meet(module)
            for parameter in module.parameters(recurse=False):
                self.meet(parameter)

    def meet(self, made: Any, where: Callable[[], Site | None] = lambda: None) -> None:
        """Shows one object to the frameworks of its class. `where` is asked only if there is one."""
        kind = type(made)
        frameworks = self._of_class.get(kind)
        if frameworks is None:
            frameworks = self._of_class[kind] = tuple(filter(None, map(self._framework, self._of(kind))))
        if frameworks:
            site = where()
            self._declared = None
            for framework in frameworks:
                if framework not in self.met:
                    self.met = sorted([*self.met, framework], key=lambda one: one.order)
                self._ask(framework, "meet", made, site)

    def _look(self, optimizer: Any, parameters: Collection[Tensor]) -> None:
        """Shows what surrounds an optimizer step: the optimizer, its parameters, and who called it."""
        self.meet(optimizer)
        for parameter in parameters:
            self.meet(parameter)
        for caller in selves_on_stack():
            self.meet(caller)
        for known in self._claimed:
            known.claimed = None
        self._claimed.clear()
        self._declared = None
        mine = {private.storage_key(private.local(parameter)) for parameter in parameters}
        held: dict[tuple[str, Role, str], list[Claim]] = {}
        for framework, claim in self._answers("claims"):
            own = private.local(claim.tensor)
            known = self._tensors.learn(own)
            known.claimed = claim.role
            self._claimed.append(known)
            if private.storage_key(own) not in mine:
                dtype = claim.dtype or DTYPE_NAMES[claim.tensor.dtype]
                held.setdefault((framework.title, claim.role, dtype), []).append(claim)
        self._bus.tell(Claimed(held))

    def _micro_batch_began(self, event: MicroBatchBegan) -> None:
        """Asks for the sums that outlive a micro-batch, as the next one's backward begins."""
        if not event.follows_another:
            return
        held: dict[tuple[str, Any], list[Claim]] = {}
        for framework, claim in self._answers("accumulates"):
            held.setdefault((framework.title, claim.tensor.dtype), []).append(claim)
            self._tensors.learn(private.local(claim.tensor)).sums_gradients = True
            if claim.leaf is not None:
                self._bus.tell(GradientReset(self._tensors.meet(claim.leaf)))
        self._bus.tell(SumsClaimed(held))

    def _of(self, kind: type) -> list[type[Framework]]:
        """The frameworks that a class or one it inherits from comes from."""
        modules = {package for base in kind.__mro__ for package in _packages(base.__module__)}
        return [one for one in self._kinds if not modules.isdisjoint(one.classes)]

    def _framework(self, kind: type[Framework]) -> Framework | None:
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: type[Framework]) -> Framework | None:
        try:
            framework = self._parts.get(kind)
            self._undo += put_in(framework.install)
        except Exception as error:
            self._guard.fault(f"{kind.title}", error)
            return None
        return framework

    def _ask(self, framework: Framework, question: str, *args: Any) -> Any:
        """Its answer, or None where it failed: a framework that changed is a note, never a crash."""
        try:
            return getattr(framework, question)(*args)
        except Exception as error:
            self._guard.fault(f"{framework.title}: {question}", error)
            return None

    def _answers(self, question: str) -> Iterator[tuple[Framework, Any]]:
        """Everything every framework has to say; an account that breaks off counts as far as it went."""
        for framework in self.met:
            try:
                for answer in getattr(framework, question)():
                    yield framework, answer
            except Exception as error:
                self._guard.fault(f"{framework.title}: {question}", error)

    # -- what they say

    def titles(self) -> list[str]:
        return [framework.title for framework in self.met]

    def owner(self, parameter: Tensor) -> tuple[Any, str] | None:
        return next(filter(None, (self._ask(one, "owner", parameter) for one in self.met)), None)

    def parameter_name(self, parameter: Tensor) -> str:
        names = (self._ask(one, "parameter_name", parameter) for one in self.met)
        return str(next(filter(None, names), ""))

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        answers = (self._ask(one, "cause", parameter, found) for one in self.met)
        return next((answer for answer in answers if answer is not None), found)

    def inserted(self, module: Any, name: str) -> bool:
        return any(name in one.inserts for one in self._of_class.get(type(module), ()))

    def tries_out(self, optimizer: Any) -> bool:
        return bool(self.met) and any(self._ask(one, "tries_out", optimizer) for one in self.met)

    def scales_loss(self) -> bool:
        return any(self._ask(one, "scales_loss") for one in self.met)

    def declarations(self) -> Iterator[Declaration]:
        for _, declaration in self._answers("declares"):
            yield declaration

    def declared(self, role: Role, dtype: str = "") -> Declaration | None:
        """Asked anew only after another object was met or a step begun."""
        if self._declared is None:
            self._declared = {}
            for declaration in self.declarations():
                self._declared.setdefault(declaration.role, []).append(declaration)
        found = self._declared.get(role, [])
        return next((one for one in found if one.dtype == dtype), found[0] if found else None)

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        for framework in self.met:
            self._ask(framework, "describe", seen, tensors)


def _packages(module: str) -> Iterator[str]:
    """a.b.c, a.b, a"""
    while module:
        yield module
        module = module.rpartition(".")[0]
