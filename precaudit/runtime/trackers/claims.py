"""What a framework, or the script itself, says of its own tensors and dtypes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...model.vocabulary import Role, Site


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
