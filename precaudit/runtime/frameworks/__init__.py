"""One adapter per framework: where it keeps its tensors, and which dtypes it declared.

An adapter is found by the module that a class comes from, and is loaded when an object of such a class is first seen:
a module that wraps another, a parameter of a class of its own, an optimizer, an object whose method is on the stack at
an optimizer step. No adapter imports its framework. What one of them raises becomes a note in the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...model.vocabulary import FLOATING, Cause, Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from ..events import GradientReset, MicroBatchBegan, StepBegan
from ..imports import when_imported
from ..process.ledger import Observation
from ..sites import selves_on_stack
from ..trackers.claims import Account, Claim, Claimed, Declaration, SumsClaimed
from ..trackers.optimizers import parameters
from ..trackers.tensors import Record
from ..watchers import Registration

if TYPE_CHECKING:
    from ..session import Session

ADAPTERS: Mapping[str, str] = {
    "trl": "trl",
    "peft": "peft",
    "deepspeed": "deepspeed",
    "transformers.trainer": "trainer",
    "lightning.pytorch": "lightning",
    "lightning.fabric.wrappers": "fabric",
    "accelerate": "accelerate",
    "torch.distributed.fsdp._fully_shard": "fsdp2",
    "torch.distributed.fsdp.fully_sharded_data_parallel": "fsdp1",
    "torch.nn.parallel.distributed": "ddp",
    "transformers": "transformers",
    "bitsandbytes": "bitsandbytes",
    "torchao.dtypes.nf4tensor": "torchao",
}
"""The module a class comes from, or a package above it -> the module of this folder that knows the framework.

The order is that in which fixes are worded: what the user writes settings in comes before what it is built on.
"""

ORDER = {name: place for place, name in enumerate(dict.fromkeys(ADAPTERS.values()))}

AWAITED: Mapping[str, str] = {
    "torch.distributed.fsdp._fully_shard._fsdp_state": "fsdp2",
    "deepspeed.runtime.engine": "deepspeed",
    "transformers.modeling_utils": "transformers",
    "transformers.training_args": "trainer",
    "transformers.utils.quantization_config": "bitsandbytes",
    "lightning.pytorch.trainer.trainer": "lightning",
    "lightning.fabric.fabric": "fabric",
    "accelerate.accelerator": "accelerate",
    "peft.tuners.tuners_utils": "peft",
}
"""A module to patch as soon as it is imported -> the adapter that does it: its objects would be met too late."""


class Adapter:
    """What an adapter may tell; each answer is optional. One adapter serves all objects of its framework."""

    title = ""
    """As the framework writes itself, for the first line of the report; in lower case, the word of a rule's `fixes`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    inserts: frozenset[str] = frozenset()
    """Names that its wrappers put into the module tree and that are none of the user's: "_fsdp_wrapped_module"."""

    def install(self) -> list[Callable[[], None]]:
        """Patches the framework's classes, once, when the first object is met or its awaited module was imported.

        Returns the undo.
        """
        return []

    def meet(self, made: Any, site: Site | None) -> None:
        """An object of the framework was seen; `site` is the user's line that made it, where that is now."""

    def tries_out(self, optimizer: Any) -> bool:
        """Whether the optimizer's step that begins now is the framework's own, to make state, and trains nothing."""
        return False

    def owner(self, parameter: Tensor) -> tuple[Any, str] | None:
        """The module of a parameter that the framework put there past `setattr`, and the parameter's name in it."""
        return None

    def parameter_name(self, parameter: Tensor) -> str:
        """The user's own fqn, or a pattern of fqns, of a tensor that stands for parameters and is in no module."""
        return ""

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        """A better account than `found` of why a parameter is low: the setting rather than the cast it led to."""
        return None

    def claims(self) -> Iterable[Claim]:
        """The roles of the framework's own tensors, as they are at a step boundary."""
        return ()

    def accumulates(self) -> Iterable[Claim]:
        """The sums of earlier micro-batches' gradients to which the backward that begins now will add.

        `.grad` of the leaves that backward reaches needs no claim: it is seen without the framework's help.
        """
        return ()

    def scales_loss(self) -> bool:
        """Whether the framework itself multiplies the loss, and unscales the gradients before the update."""
        return False

    def declares(self) -> Iterable[Declaration]:
        """The dtypes that its settings ask for."""
        return ()

    def reactions(self) -> Iterable[Registration]:
        """What to do when the framework's own ops run in the traced steps; asked once, when tracing begins."""
        return ()

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        """Adds what only the framework knows to the Observation of an optimizer's weights."""

    def observes(self) -> Iterable[Observation]:
        """What else it has to say when the report is written: a setting that is wrong by itself."""
        return ()


class Adapters(Account):
    """The adapters of one session, loaded as their frameworks are met."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._claimed: list[Record] = []
        """What the newest account of the adapters claims."""
        self._of_class: dict[type, tuple[Adapter, ...]] = {}
        self._loaded: dict[str, Adapter | None] = {}
        self.met: list[Adapter] = []
        """The adapters of all frameworks of which an object was seen, in the order of ADAPTERS."""
        self._declared: dict[Role, list[Declaration]] | None = None
        """The declarations of each role, until something new is met."""
        self._undo: list[Callable[[], None]] = []
        session.bus.on(MicroBatchBegan, self._micro_batch_began)
        session.bus.on(StepBegan, lambda event: self.look(event.optimizer, parameters(event.optimizer)))
        session.steps.tried_out_by.append(self.tries_out)
        session.accounts.by = self

    def _micro_batch_began(self, event: MicroBatchBegan) -> None:
        if event.follows_another:
            self.accumulating()

    def install(self) -> list[Callable[[], None]]:
        """Waits for the frameworks whose objects come too late to be patched."""
        awaited = {module: partial(self._await, name) for module, name in AWAITED.items()}
        return [when_imported(awaited)]

    def remove(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    # -- meeting the frameworks

    def meet(self, made: Any, where: Callable[[], Site | None] = lambda: None) -> None:
        """Shows one object to the adapters of its class. `where` is asked only if there is one."""
        kind = type(made)
        adapters = self._of_class.get(kind)
        if adapters is None:
            adapters = self._of_class[kind] = tuple(self._find(kind))
        if adapters:
            site = where()
            self._declared = None
            for adapter in adapters:
                if adapter not in self.met:
                    self.met = sorted([*self.met, adapter], key=_place)
                self._ask(adapter, "meet", made, site)

    def look(self, optimizer: Any, parameters: Collection[Tensor]) -> None:
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
        for adapter, claim in self._answers("claims"):
            own = private.local(claim.tensor)
            known = self.session.tensors.learn(own)
            known.claimed = claim.role
            self._claimed.append(known)
            if private.storage_key(own) not in mine:
                dtype = claim.dtype or DTYPE_NAMES[claim.tensor.dtype]
                held.setdefault((adapter.title, claim.role, dtype), []).append(claim)
        self.session.adapted.ask_again()
        self.session.bus.tell(Claimed(held))

    def accumulating(self) -> None:
        """Asks for the sums that outlive a micro-batch, as the next one's backward begins."""
        held: dict[tuple[str, Any], list[Claim]] = {}
        for adapter, claim in self._answers("accumulates"):
            held.setdefault((adapter.title, claim.tensor.dtype), []).append(claim)
            self.session.tensors.learn(private.local(claim.tensor)).sums_gradients = True
            if claim.leaf is not None:
                self.session.bus.tell(GradientReset(self.session.tensors.meet(claim.leaf)))
        self.session.bus.tell(SumsClaimed(held))

    def _find(self, kind: type) -> Iterator[Adapter]:
        names = dict.fromkeys(ADAPTERS[p] for base in kind.__mro__ for p in _packages(base.__module__) if p in ADAPTERS)
        yield from filter(None, map(self._adapter, names))

    def _adapter(self, name: str) -> Adapter | None:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _await(self, name: str) -> None:
        self._adapter(name)

    def _load(self, name: str) -> Adapter | None:
        try:
            adapter: Adapter = import_module(f"{__name__}.{name}").ADAPTER(self.session)
            private.hide_from_dynamo()
            self._undo += adapter.install()
        except Exception as error:
            self.session.guard.fault(f"the adapter for {name}", error)
            return None
        return adapter

    def _ask(self, adapter: Adapter, question: str, *args: Any) -> Any:
        """The adapter's answer, or None where it failed: a framework that changed is a note, never a crash."""
        try:
            return getattr(adapter, question)(*args)
        except Exception as error:
            self.session.guard.fault(f"{adapter.title}: {question}", error)
            return None

    def _answers(self, question: str) -> Iterator[tuple[Adapter, Any]]:
        """Everything every adapter has to say; an account that breaks off counts as far as it went."""
        for adapter in self.met:
            try:
                for answer in getattr(adapter, question)():
                    yield adapter, answer
            except Exception as error:
                self.session.guard.fault(f"{adapter.title}: {question}", error)

    # -- what they say

    def owner(self, parameter: Tensor) -> tuple[Any, str] | None:
        """A parameter's module and its name there by the first adapter that knows it."""
        return next(filter(None, (self._ask(adapter, "owner", parameter) for adapter in self.met)), None)

    def parameter_name(self, parameter: Tensor) -> str:
        """A parameter's name by the first adapter that knows it; "" where none does."""
        for adapter in self.met:
            name = self._ask(adapter, "parameter_name", parameter)
            if name:
                return str(name)
        return ""

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        """Why a parameter is low, by the first adapter that knows better; else what was found."""
        answers = (self._ask(adapter, "cause", parameter, found) for adapter in self.met)
        return next((answer for answer in answers if answer is not None), found)

    def reactions(self) -> Iterator[Registration]:
        for _, registration in self._answers("reactions"):
            yield registration

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        """Has every adapter add what it knows of these weights."""
        for adapter in self.met:
            self._ask(adapter, "describe", seen, tensors)

    def inserted(self, module: Any, name: str) -> bool:
        """Whether a framework gave this child of a module its name."""
        return any(name in adapter.inserts for adapter in self._of_class.get(type(module), ()))

    def scales_loss(self) -> bool:
        return any(self._ask(adapter, "scales_loss") for adapter in self.met)

    def tries_out(self, optimizer: Any) -> bool:
        return any(self._ask(adapter, "tries_out", optimizer) for adapter in self.met)

    def declarations(self) -> Iterator[tuple[Adapter, Declaration]]:
        yield from self._answers("declares")

    def declared(self, role: Role, dtype: str = "") -> Declaration | None:
        """The first declaration for this role, of those of `dtype` if there are any.

        Asked anew only after another object was met or a step begun.
        """
        if self._declared is None:
            self._declared = {}
            for _, declaration in self.declarations():
                self._declared.setdefault(declaration.role, []).append(declaration)
        found = self._declared.get(role, [])
        return next((one for one in found if one.dtype == dtype), found[0] if found else None)

    def observations(self) -> list[Observation]:
        return [observation for _, observation in self._answers("observes")]

    def _excuse(self, how: str) -> str:
        return "" if how == "lower" or self.session.steps.on_accelerator() else "this run was on the CPU"

    def dishonoured(self, seen: Iterable[Observation]) -> list[Observation]:
        """PA504's Facts: a declared dtype beside the dtypes that the role was seen to hold."""
        held: dict[Role, dict[str, Observation]] = {}
        for one in seen:
            if one.kind is Kind.HOLDS and one.role is not None and one.dtype in FLOATING:
                held.setdefault(one.role, {}).setdefault(one.dtype, one)
        said = [one for _, one in self.declarations() if one.chosen != "default"]
        said += self.session.autocast.declares()
        out: dict[Any, Observation] = {}
        for declaration in said:
            # What another declaration of the same role asks for is not against this one: a float32 head, autocast.
            others = {one.dtype for one in said if one.role is declaration.role and not _carries_out(one, declaration)}
            others.discard(declaration.dtype)
            actual = {d: one for d, one in held.get(declaration.role, {}).items() if d not in others}
            differs = relation(declaration.dtype, actual)
            if differs is not None:
                how, dtype = differs
                fact = Observation(
                    Kind.DECLARED,
                    declaration.dtype,
                    declaration.role,
                    declaration.site or actual[dtype].site,
                    Cause(f"{declaration.dtype} was declared by {declaration.by}", declaration.site),
                    actual[dtype].module,
                    "; ".join(filter(None, (actual[dtype].detail, self._excuse(how)))),
                    count=1,
                    attrs={"actual": dtype, "relation": how, "chosen": declaration.chosen},
                )
                out.setdefault((declaration.role, declaration.dtype, dtype), fact)
        return list(out.values())


def _place(adapter: Adapter) -> int:
    return ORDER.get(type(adapter).__module__.rpartition(".")[2], len(ORDER))


def _carries_out(one: Declaration, other: Declaration) -> bool:
    """Whether an autocast region is only how the other declaration is put into effect."""
    return one.by.startswith("autocast") and other.autocast


def imported(module: str, name: str) -> list[Any]:
    """What an imported module holds under this name, alone in a list; an empty one where it is not (yet) imported."""
    found = getattr(sys.modules.get(module), name, None)
    return [] if found is None else [found]


def relation(declared: str, actual: Iterable[str]) -> tuple[str, str] | None:
    """How what ran differs from what was declared, and in which dtype: ("lower"|"higher"|"substitute", dtype).

    None where it does not, or where nothing was seen. One lower value among many is lower; a higher one beside the
    declared dtype is not a difference, for much of a step stays in float32 by design.
    """
    if declared not in FLOATING:
        return None
    bits = {dtype: FLOATING[dtype].bits for dtype in actual if dtype in FLOATING}
    lower = [dtype for dtype, width in bits.items() if width < FLOATING[declared].bits]
    if lower:
        return "lower", min(lower, key=lambda dtype: bits[dtype])
    if not bits or declared in bits:
        return None
    nearest = min(bits, key=lambda dtype: bits[dtype])
    return ("substitute" if bits[nearest] == FLOATING[declared].bits else "higher"), nearest


def _packages(module: str) -> Iterator[str]:
    """a.b.c, a.b, a"""
    while module:
        yield module
        module = module.rpartition(".")[0]
