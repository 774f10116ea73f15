"""Keras on torch: its dtype policies, which say in which dtype layers compute and keep their variables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...model.frameworks import framework
from ...model.vocabulary import Cause, Role, Site
from ..dtypes import DTYPE_NAMES
from ..trackers.claims import Declaration
from . import Framework

POLICIES = framework("keras").precision
"""Keras's words for a dtype policy."""


class Keras(Framework):
    """Layers are modules of torch, met as they are registered; each knows its policy."""

    title = "Keras"
    order = 60
    classes = ("keras",)
    inserts = frozenset({"_torch_params"})

    def __init__(self) -> None:
        self._policies: dict[str, Site | None] = {}
        """The policies in use, and the line of the first layer of each."""

    def meet(self, made: Any, site: Site | None) -> None:
        policy = getattr(getattr(made, "dtype_policy", None), "name", "")
        if policy in POLICIES and self._policies.get(policy) is None:
            self._policies[policy] = site

    def cause(self, parameter: Tensor, found: Cause | None) -> Cause | None:
        for policy, site in self._policies.items():
            if POLICIES[policy] == (DTYPE_NAMES.get(parameter.dtype), "parameters"):
                return Cause(f'the dtype policy "{policy}" makes variables {POLICIES[policy].dtype}', site)
        return None

    def declares(self) -> Iterable[Declaration]:
        for policy, site in self._policies.items():
            yield Declaration(Role.MATMUL_COMPUTE, POLICIES[policy].dtype, f'the dtype policy "{policy}"', site)
