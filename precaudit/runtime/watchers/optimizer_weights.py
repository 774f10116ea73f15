"""The weights that optimizers step on: masters or adapters, in which dtype, and what makes a low one bearable."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus
from ..process.ledger import Ledger, Observation
from ..trackers.adapters import Adapters
from ..trackers.claims import Account
from ..trackers.contents import OptimizerRead
from ..trackers.loss_scale import LossScale
from ..trackers.modules import Modules
from ..trackers.optimizers import Held, nbytes
from ..trackers.tensors import Tensors
from . import Watcher
from .updates import Updates

LOST_BITS = re.compile(r"err|ecc|comp|resid|kahan|low|lost", re.IGNORECASE)
HALVES = frozenset({torch.int16, *({torch.uint16} if hasattr(torch, "uint16") else ())})
"""What the lower half of a float32 number is kept in, beside its upper half as bfloat16."""
LARGEST_TALLY = 255
FEW = 4096


class OptimizerWeights(Watcher):
    """PA101's rows and their kin, as they are after each step."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        tensors: Tensors,
        modules: Modules,
        account: Account,
        adapters: Adapters,
        loss_scale: LossScale,
        updates: Updates,
    ) -> None:
        self._ledger, self._tensors, self._modules, self._account = ledger, tensors, modules, account
        self._adapters, self._loss_scale, self._updates = adapters, loss_scale, updates
        bus.on(OptimizerRead, self._optimizer_read)

    def _optimizer_read(self, event: OptimizerRead) -> None:
        rows = self._weights(event)
        for dtype, tensors in event.masters.items():
            self._masters(rows, event.optimizer, dtype, tensors)
        self._ledger.renew((OptimizerWeights, id(event.optimizer)), rows)

    def _weights(self, event: OptimizerRead) -> dict[Any, Observation]:
        """What the optimizer steps on, by role and dtype."""
        optimizer, mine = event.optimizer, event.mine
        name, site = type(optimizer).__name__, self._modules.built_at.get(optimizer)
        rows: dict[Any, Observation] = {}
        held: dict[tuple[Role, Any], list[Tensor]] = {}
        for parameter in mine:
            own = private.largest_part(parameter)
            role = self._weight_role(optimizer, parameter, own)
            if role is not None:
                held.setdefault((role, own.dtype), []).append(parameter)
        for (role, dtype), params in held.items():
            seen = Observation(
                Kind.HOLDS,
                DTYPE_NAMES.get(dtype, str(dtype)),
                role,
                site,
                self._modules.why_low(params[0]) if dtype in LOW else None,
                self._modules.name(params[0]) if len(params) == 1 else "",
                f"{len(params)}/{len(mine)} parameters of {name}",
                len(params),
                sum(nbytes(p) for p in params),
                {"optimizer": name},
            )
            if dtype in LOW:
                self._updates.of_parameters(seen, params)
                self._compensated(event.kept, seen, params)
                if role is Role.ADAPTER_PARAMETER and self._loss_scale.missing:
                    seen.attrs["loss_scaling"] = "none"
            if role is Role.MASTER_WEIGHT and self._adapters.swapped(params):
                seen.attrs["swapped"] = True
            self._account.describe(seen, params)
            rows[OptimizerWeights, id(optimizer), role, dtype] = seen
        return rows

    def _compensated(self, kept: list[Held], seen: Observation, params: Iterable[Tensor]) -> None:
        """Why low-precision parameters may be updated in place: no update is lost, or lost ones even out."""
        kinds = [self._tensors.of(private.local(p)).writes for p in params]
        if all(p.dtype is torch.bfloat16 for p in params) and self._holds_lower_halves(kept, params):
            seen.attrs["allowed_because"] = "float32-master"
        elif all("kahan" in kind for kind in kinds) or self._carries_lost_bits(kept, params):
            seen.attrs["allowed_because"] = "kahan"
        elif all("stochastic" in kind and "update" not in kind for kind in kinds):
            seen.attrs["allowed_because"] = "stochastic-rounding"

    @staticmethod
    def _holds_lower_halves(kept: list[Held], params: Iterable[Tensor]) -> bool:
        """Whether 16-bit integers beside the parameters complete them to float32: weight and remainder are one master.

        They need no name. What else is an integer for each element, a mask or an age, leaves most of its bits unused.
        """
        halves = [h for h in kept if h.tensor.dtype in HALVES]
        filed = {id(h.parameter) for h in halves if h.parameter is not None and _same_size(h.tensor, h.parameter)}
        loose = Counter(h.tensor.numel() for h in halves if h.parameter is None)
        loose.subtract(p.numel() for p in params if id(p) not in filed)
        if not halves or min(loose.values(), default=0) < 0:
            return False
        parts = [h.tensor.detach().reshape(-1)[:FEW].to(torch.int32).abs() for h in halves if h.tensor.numel()]
        return any(int(part.max()) > LARGEST_TALLY for part in parts)

    @staticmethod
    def _carries_lost_bits(kept: list[Held], params: Iterable[Tensor]) -> bool:
        """Whether integers of each parameter's own shape hold the bits that its dtype cannot."""
        held = {
            id(h.parameter)
            for h in kept
            if h.parameter is not None
            and h.tensor.dtype in (torch.int8, torch.int16)
            and h.tensor.shape == h.parameter.shape
            and LOST_BITS.search(h.name)
        }
        return bool(held) and all(id(p) in held for p in params)

    def _weight_role(self, optimizer: Any, parameter: Tensor, own: Tensor) -> Role | None:
        """master_weight unless it is only ever copied from a float32 master; None where that is not known yet."""
        claimed = self._tensors.of(own).claimed
        if claimed is not None:
            return claimed
        if self._adapters.is_adapter(parameter):
            return Role.ADAPTER_PARAMETER
        if own.dtype not in LOW:
            return Role.MASTER_WEIGHT
        known = self._tensors.of(own)
        writes = known.writes
        if writes:
            return Role.MASTER_WEIGHT if writes & {"update", "stochastic"} else None
        if known.copied_from is not None and known.copied_from.expired:  # computed, rounded and dropped
            return Role.MASTER_WEIGHT
        return Role.MASTER_WEIGHT if type(optimizer).__module__.startswith("torch.optim") else None

    def _masters(self, rows: dict[Any, Observation], optimizer: Any, dtype: Any, tensors: list[Tensor]) -> None:
        """Weights that the optimizer keeps beside the parameters: float32 masters, averages it steps on."""
        name, site = type(optimizer).__name__, self._modules.built_at.get(optimizer)
        kept = f"{len(tensors)} weights that {name} keeps in its state"
        made = Observation(Kind.HOLDS, DTYPE_NAMES[dtype], Role.MASTER_WEIGHT, site, attrs={"optimizer": name})
        seen = rows.setdefault((OptimizerWeights, id(optimizer), Role.MASTER_WEIGHT, dtype), made)
        seen.detail = f"{seen.detail}, and {kept}" if seen.detail else kept
        seen.count += len(tensors)
        seen.bytes += sum(nbytes(tensor) for tensor in tensors)


def _same_size(tensor: Tensor, parameter: Tensor) -> bool:
    return bool(tensor.numel() == private.local(parameter).numel())
