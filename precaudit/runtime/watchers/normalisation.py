"""Norm statistics: written by hand in low precision, and BatchNorm's running buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, LOW
from ..operands import in_graph
from ..optable import BATCH_NORMS
from ..process.ledger import Ledger, Observation
from ..sites import enclosing_module, user_site
from ..trackers.claims import Account
from ..trackers.entering import Entering
from ..trackers.lineage import Flow
from ..trackers.modules import Modules
from ..trackers.samples import nonfinite
from ..trackers.tensors import Tensors
from . import FORWARD, Registration, Watcher


class Normalisation(Watcher):
    """PA402 and PA403. A square, its mean, and the root of that: three ops that together are a norm."""

    def __init__(
        self,
        ledger: Ledger,
        tensors: Tensors,
        flow: Flow,
        modules: Modules,
        account: Account,
        entering: Entering,
    ) -> None:
        self._entering = entering
        self._ledger = ledger
        self._tensors = tensors
        self._modules = modules
        self._account = account
        self.flow = flow

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("pow", "square", "mul"), self.square, True
        yield FORWARD, ("mean", "sum", "var", "std", "linalg_vector_norm"), self.statistic, True
        yield FORWARD, ("rsqrt", "sqrt", "pow"), self.root, True
        yield FORWARD, BATCH_NORMS, self.batch_norm, False

    def square(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name == "pow" and _exponent(args) != 2:
            return
        if name == "mul" and not (
            isinstance(args[1], Tensor) and private.storage_key(args[0]) == private.storage_key(args[1])
        ):
            return
        if out.numel() == 1:
            return
        seen = self._suspect(name, args, out)
        self.flow.mark(out, square=seen)
        if seen.count <= 4:
            self._ledger.defer(nonfinite(out), self.flow.share(seen, "inf_share"))

    def statistic(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Of a whole batch it is one number: an advantage is divided by it, a norm that is trained never is."""
        if not isinstance(args[0], Tensor) or (out.numel() == 1 and in_graph(args)):
            return
        square = self.flow.of(args[0]).get("square")
        if square is None and name in ("var", "std"):
            square = self._suspect(name, args, out)
        if square is not None:
            self.flow.mark(out, square_mean=square)
            if name == "std":
                self._is_norm(square, args, out)

    def root(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name == "pow" and _exponent(args) not in (-0.5, 0.5):
            return
        statistic = self.flow.of(args[0]).get("square_mean")
        if statistic is not None:
            self._is_norm(statistic, args, out)

    def _suspect(self, name: str, args: Any, out: Tensor) -> Observation:
        what = "norm" if in_graph(args) else "norm without gradient"
        return self.flow.suspect(what, Role.NORM_COMPUTATION, out.dtype, name, hand_written=True)

    def _is_norm(self, seen: Observation, args: Any, out: Tensor) -> None:
        """The root of a mean of squares: of a differentiable value at once, of another if it enters the loss."""
        if in_graph(args):
            self.flow.confirm(seen)
        else:
            self._entering.mark(out, seen)

    def batch_norm(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Running statistics are an argument of the kernel, wherever the call came from."""
        buffers = [arg for arg in args[3:5] if isinstance(arg, Tensor)]
        trains = ("_batch_norm_with_update", "batch_norm_gather_stats", "batch_norm_gather_stats_with_counts")
        training = name in trains or any(a is True for a in args[3:])
        if training:
            for buffer in buffers:
                self._running_statistics(buffer)

    def _running_statistics(self, buffer: Tensor) -> None:
        known = self._tensors.learn(buffer)
        if known.runs:
            return
        known.runs = True
        module = enclosing_module(torch.nn.Module)
        cause = self._modules.cast_at.get(module) if module is not None and buffer.dtype in LOW else None
        name = DTYPE_NAMES[buffer.dtype]
        declared = self._account.declared(Role.NORM_RUNNING_STATISTICS, name) if buffer.dtype in LOW else None
        made_so = declared is not None and declared.dtype == name
        seen = self._ledger.once(
            (Normalisation, buffer.dtype),
            Observation(
                Kind.HOLDS,
                name,
                Role.NORM_RUNNING_STATISTICS,
                (declared.site if declared and made_so else cause.site if cause else None) or user_site(),
                cause,
                self._modules.module_name(module),
                attrs={"by": "buffer_dtype"} if made_so else {},
            ),
        )
        seen.bytes += buffer.nbytes


def _exponent(args: Any) -> float | None:
    """The exponent where it is a number and the base a tensor: of `2 ** x` and `x ** y` it is none."""
    number = args[1] if len(args) > 1 and isinstance(args[0], Tensor) else None
    return number if isinstance(number, (int, float)) else None
