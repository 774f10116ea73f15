"""One file per framework: where it keeps its tensors, and which dtypes it declared.

A framework is found by the module that a class comes from, and is asked once an object of such a class was seen: a
module that wraps another, a parameter of a class of its own, an optimizer, an object whose method is on the stack at
an optimizer step. No file here imports its framework. What one of them raises becomes a note in the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ...model.vocabulary import Cause, Site
from ..process.ledger import Observation
from ..trackers.claims import Claim, Declaration


class Framework:
    """What a framework may tell; each answer is optional. One object of this class serves all of its framework's.

    Its constructor names the parts that it needs by their class, the bus among them. A file in this folder is all it
    takes: it is found, made when the framework is met, and asked.
    """

    title = ""
    """As the framework writes itself, for the first line of the report; in lower case, the word of a rule's `fixes`."""
    order = 0
    """Whose words come first, in fixes and in answers: what the user writes settings in, then what it is built on."""
    classes: tuple[str, ...] = ()
    """The modules that its classes come from, or packages above them."""
    awaits: tuple[str, ...] = ()
    """Modules to patch as soon as they are imported: objects of theirs would be met too late."""
    inserts: frozenset[str] = frozenset()
    """Names that its wrappers put into the module tree and that are none of the user's: "_fsdp_wrapped_module"."""

    def install(self) -> Iterable[Callable[[], None]]:
        """Patches the framework's classes, once, when the first object is met or its awaited module was imported.

        After each patch it yields what takes that one out again.
        """
        return ()

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

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        """Adds what only the framework knows to the Observation of an optimizer's weights."""

    def observes(self) -> Iterable[Observation]:
        """What else it has to say when the report is written: a setting that is wrong by itself."""
        return ()


def imported(module: str, name: str) -> list[Any]:
    """What an imported module holds under this name, alone in a list; an empty one where it is not (yet) imported."""
    found = getattr(sys.modules.get(module), name, None)
    return [] if found is None else [found]
