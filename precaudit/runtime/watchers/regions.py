"""Autocast at work: switched off around low values, or serving casts of weights that changed or lost their gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role
from ..dtypes import DTYPE_NAMES, LOW
from ..operands import in_graph
from ..optable import MATMULS, POINTWISE, REDUCING
from ..process.ledger import Ledger
from ..trackers.autocast import Autocast
from ..trackers.lineage import CastOf, Flow
from ..trackers.tensors import Tensors
from . import FORWARD, OPTIMIZER, Registration, Watcher


class Regions(Watcher):
    """PA410, PA703, PA708 and PA712; also remembers what each cast was a cast of."""

    def __init__(self, ledger: Ledger, tensors: Tensors, flow: Flow, autocast: Autocast) -> None:
        self._tensors = tensors
        self._autocast = autocast
        self._ledger = ledger
        self.flow = flow

    def reactions(self) -> Iterable[Registration]:
        yield FORWARD, ("_to_copy",), self.cast, False
        yield OPTIMIZER, ("_to_copy",), self.cast, False
        yield FORWARD, POINTWISE | REDUCING, self.switched_off, True
        yield FORWARD, ("add", "sub", "mul", "div"), self.promotion, True
        yield FORWARD, ("add", "sub", "mul", "div"), self.widened, False
        yield FORWARD, ("mean", "sum"), self.into_loss, True
        yield FORWARD, MATMULS, self.cached_weight, True

    def cast(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        if out.dtype in LOW or source.dtype in LOW:
            weight = source.requires_grad and self._tensors.is_parameter(source)
            known = self._tensors.learn(source)
            self.flow.mark(out, cast_of=CastOf(known, source.dtype, known.version if weight else 0))
            if weight and not torch.is_grad_enabled():
                self.flow.mark(out, no_grad_cast=True)
            if not in_graph(args) and self._tensors.is_parameter(source):
                self.flow.mark(out, param=True)

    def widened(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A float32 parameter makes float32 of a low activation: of its memory, and of what is computed of it."""
        one, other = args[0], args[1]
        if out.dtype is not torch.float32 or not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return
        low, wide = (one, other) if one.dtype in LOW else (other, one)
        if low.dtype not in LOW or wide.dtype is not torch.float32 or not low.requires_grad or not wide.ndim:
            return
        if isinstance(wide, torch.nn.Parameter) and low.numel() == out.numel() > wide.numel():
            detail = f"{DTYPE_NAMES[low.dtype]} values in {name}"
            seen = self.flow.suspect_kind(
                "widened", Kind.OP, Role.ACTIVATION, out.dtype, detail, op="promotion-by-parameter"
            )
            seen.confirmed = True
            seen.bytes += out.nbytes

    def switched_off(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A low value is worked on inside autocast(enabled=False): nothing upcast it there."""
        if not self._autocast.disabled_inside() or not in_graph(args):
            return
        if any(isinstance(arg, Tensor) and arg.dtype in LOW for arg in args):
            site = self._autocast.regions[-1].site
            key = (Regions, site)
            if self._ledger.get(key) is None:
                seen = self.flow.suspect_kind("switched off", Kind.AUTOCAST, Role.ACTIVATION, out.dtype, name)
                seen.attrs.update(enabled=False, upcast=False)
                seen.confirmed = True
                self._ledger.observations[key] = self._ledger.observations.popitem()[1]

    def promotion(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A 0-d float32 tensor with a low tensor: the result stays low."""
        given = [a for a in args[:2] if isinstance(a, Tensor)]
        other = [a for a in given if a.ndim == 0 and a.dtype is torch.float32 and not a.requires_grad]
        low = [a for a in given if a.ndim > 0 and a.dtype in LOW]
        if other and low and in_graph(args):
            detail = f"a 0-dim float32 tensor in {name}"
            seen = self.flow.suspect_kind("promotion", Kind.OP, Role.LOSS, out.dtype, detail, op="no-promotion")
            self.flow.mark(out, unpromoted=seen)

    def into_loss(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Elsewhere a scale is meant to keep the dtype; in a loss it was meant to raise it."""
        seen = self.flow.of(args[0]).get("unpromoted")
        if seen is not None and out.numel() == 1:
            seen.confirmed = True

    def cached_weight(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A matmul that trains reads a cast of a weight made under no_grad, or before the weight changed."""
        if not torch.is_grad_enabled() or self._autocast.active() is None:
            return
        for arg in args:
            if not isinstance(arg, Tensor) or arg.dtype not in LOW:
                continue
            marks = self.flow.of(arg)
            made = marks.get("cast_of")
            if made is None:
                continue
            stale = made.version and made.version != made.source.version
            lost = "no_grad_cast" in marks and not arg.requires_grad
            if stale or lost:
                detail = "the weight changed since autocast cached its cast" if stale else "its cast has no gradient"
                seen = self.flow.suspect_kind("cache", Kind.AUTOCAST, Role.FORWARD_WEIGHT, arg.dtype, detail)
                seen.confirmed = True
                seen.attrs["stale_cache"] = True
