"""torchao's NF4Tensor: a frozen base in 4 bits, as torchtune trains QLoRA, whose own dtype says bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...model.vocabulary import Role, Site
from ..trackers.claims import Claim
from ..trackers.tensors import TensorMap
from . import Adapter

if TYPE_CHECKING:
    from ..session import Session


class TorchAO(Adapter):
    """Its weights are parameters of the user's own modules, met as they are registered there."""

    title = "torchao"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._weights: TensorMap[bool] = TensorMap()

    def meet(self, made: Any, site: Site | None) -> None:
        if isinstance(made, Tensor):
            self._weights.set(made, True)

    def claims(self) -> Iterable[Claim]:
        for weight, _ in self._weights.items():
            yield Claim(weight, Role.QUANTIZED_STORAGE, type(weight).__name__, dtype="nf4")


ADAPTER = TorchAO
