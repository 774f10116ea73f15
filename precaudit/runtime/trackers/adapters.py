"""Tells adapters from the base they are added to, and whether the wrong one of the two is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...model.vocabulary import Role
from .. import torch_private as private
from ..dtypes import LOW
from ..events import Bus
from .claims import Claimed
from .modules import Modules
from .tensors import Tensors

NAMES = re.compile(r"(?:^|[._])(?:lora|adapter|ia3|prompt|prefix_enc|dora|loha|lokr|vera)", re.IGNORECASE)
"""How adapter weights are called where no framework says which they are."""


class Adapters:
    """Asked at step boundaries, about the parameters of one optimizer."""

    def __init__(self, bus: Bus, tensors: Tensors, modules: Modules) -> None:
        self._tensors = tensors
        self._modules = modules
        self._known: dict[int, bool] = {}
        """`id` of a parameter of the step that goes on -> whether it is an adapter."""
        bus.on(Claimed, lambda event: self._known.clear())

    def is_adapter(self, parameter: Tensor) -> bool:
        """By the framework's account, else by name."""
        known = self._known.get(id(parameter))
        if known is None:
            claimed = self._tensors.of(private.local(parameter)).claimed is Role.ADAPTER_PARAMETER
            known = claimed or bool(NAMES.search(self._modules.name(parameter)))
            self._known[id(parameter)] = known
        return known

    def swapped(self, trained: Iterable[Tensor]) -> list[Tensor]:
        """Base weights among these that the adapters beside them were to replace.

        A base weight is one that an adapter is added to: another layer's, such as a classification head, may be
        trained beside adapters, and so may a bias. Low ones are trained by mistake even where the adapters are trained
        too; float32 ones only where no adapter is.
        """
        construction = self._modules
        known: dict[Any, list[Tensor]] = {}
        found = []
        for parameter in trained:
            if parameter.ndim < 2 or self.is_adapter(parameter):
                continue
            around = construction.around(construction.holder(parameter))
            if not self._has_adapters(around[-1], known):
                continue
            beside = next((b for module in around[:LEVELS] if (b := self._beside(module, known))), [])
            if beside and (private.local(parameter).dtype in LOW or not any(p.requires_grad for p in beside)):
                found.append(parameter)
        return found

    def _has_adapters(self, root: Any, known: dict[Any, list[Tensor]]) -> bool:
        if root is None:
            return False
        if ("any", root) not in known:
            known["any", root] = [p for p in root.parameters() if self.is_adapter(p)]
        return bool(known["any", root])

    def _beside(self, module: Any, known: dict[Any, list[Tensor]]) -> list[Tensor]:
        """The adapters that this module itself holds, directly or in containers of nothing else."""
        if module not in known:
            held = [p for p in module.parameters(recurse=False) if self.is_adapter(p)]
            for child in module.children():
                inside = list(child.parameters())
                if inside and all(self.is_adapter(p) for p in inside):
                    held += inside
            known[module] = held
        return known[module]


LEVELS = 2
"""A base weight's own module, and the layer that adapts it."""
