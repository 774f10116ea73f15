"""What a framework, or the script itself, says of its own tensors and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...model.vocabulary import FLOATING, Cause, Role, Site
from ..process.ledger import Observation


class Claim(NamedTuple):
    """This tensor plays this role, by the framework's own account."""

    tensor: Tensor
    role: Role
    detail: str = ""
    """What the framework calls it: "single_partition_of_fp32_groups"."""
    site: Site | None = None
    """The user's line to blame, if it is not that of the optimizer or of the backward."""
    leaf: Tensor | None = None
    """The leaf whose `.grad` this sum is, where it is one: then the claim speaks for it."""
    dtype: str = ""
    """Where the tensor's own dtype does not say what it holds: "nf4"."""


class Declaration(NamedTuple):
    """The user, or the framework on the user's behalf, declared a dtype for a role."""

    role: Role
    dtype: str
    """"" where it is chosen in code that cannot be read: then it is known to be chosen, and by whom."""
    by: str
    """In the framework's words: "MixedPrecisionPolicy(reduce_dtype)"."""
    site: Site | None = None
    chosen: str = "explicit"
    """"explicit": written by the user; "framework": the framework's own default; "default": inherited from another
    setting because the user left this one out."""
    autocast: bool = False
    """It is put into effect by autocast, whose regions then declare nothing of their own."""


class Claimed(NamedTuple):
    """The frameworks have told what they hold, before a step."""

    held: Mapping[tuple[str, Role, str], list[Claim]]
    """(framework, role, dtype) -> its tensors."""


class SumsClaimed(NamedTuple):
    """The frameworks have told to which sums of gradients the backward that begins will add."""

    held: Mapping[tuple[str, Any], list[Claim]]
    """(framework, dtype) -> the sums."""


class Account:
    """What is asked of the frameworks of this process; here, the answers where there is none."""

    def titles(self) -> list[str]:
        """The frameworks of which an object was seen."""
        return []

    def owner(self, parameter: Tensor) -> tuple[Any, str] | None:
        """The module of a parameter that a framework put there past `setattr`, and the parameter's name in it."""
        return None

    def parameter_name(self, parameter: Tensor) -> str:
        """The user's own name for it; "" where no framework knows better than the modules."""
        return ""

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        """Why a parameter is low: `found`, or a better account."""
        return found

    def inserted(self, module: Any, name: str) -> bool:
        """Whether a framework gave this child of a module its name."""
        return False

    def tries_out(self, optimizer: Any) -> bool:
        """Whether the step that begins now is a framework's own, to make state, and trains nothing."""
        return False

    def scales_loss(self) -> bool:
        """Whether a framework multiplies the loss itself."""
        return False

    def declarations(self) -> Iterable[Declaration]:
        """All dtypes that were declared."""
        return ()

    def declared(self, role: Role, dtype: str = "") -> Declaration | None:
        """What was declared for this role, of `dtype` if there is such a declaration."""
        return None

    def describe(self, seen: Observation, tensors: Sequence[Tensor]) -> None:
        """Adds what only a framework knows of these weights."""


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
