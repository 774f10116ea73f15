"""torchao's NF4Tensor: a frozen base in 4 bits, as torchtune trains QLoRA, whose own dtype says bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...model.vocabulary import Role, Site
from ..trackers.claims import Claim
from ..trackers.holders import Holders
from . import Framework


class TorchAO(Framework):
    """Its weights are parameters of the user's own modules, met as they are registered there."""

    title = "torchao"
    order = 130
    classes = ("torchao.dtypes.nf4tensor",)

    def __init__(self, holders: Holders) -> None:
        self._holders = holders
        self._weights: dict[int, None] = {}
        """`id` of every weight that was registered or trained; a module tells whether it still is one."""

    def meet(self, made: Any, site: Site | None) -> None:
        if isinstance(made, Tensor):
            self._weights[id(made)] = None

    def claims(self) -> Iterable[Claim]:
        for weight in map(self._holders.parameter, self._weights):
            if type(weight).__name__ == "NF4Tensor":
                yield Claim(weight, Role.QUANTIZED_STORAGE, type(weight).__name__, dtype="nf4")
