"""Gradients between backward and step: their underflow, their norms, clipping, and their reduction over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from .. import torch_private as private
from ..dtypes import DTYPE_NAMES, FLOATING_DTYPES, LOW
from ..events import AddedUnscaled, BackwardEnded, Boundary, Bus, GradientsRescaled, ScalerStepBegan, StepOver
from ..operands import tensors_of
from ..optable import MATMULS, NORMS, POINTWISE, REDUCING, REDUCTION_COLLECTIVES, SHAPING
from ..process.ledger import Ledger, Observation
from ..sites import user_site
from ..trackers.claims import Account
from ..trackers.lineage import CastOf, Flow, Marks, kind_of
from ..trackers.loss_scale import Float16Gradients, LossScale
from ..trackers.optimizers import parameters
from ..trackers.samples import nonfinite, underflow
from ..trackers.tensors import Leaf, Tensors
from ..trackers.window import Window
from . import BACKWARD, FORWARD, GRADIENTS, Registration, Watcher

SAMPLED_PER_STEP = 8
UNDERFLOW = 0.3
"""Share of subnormals among non-zero float16 gradients from which on the loss scale may be called too small."""
HARM = 0.01
"""What their rounding has to move the gradients by, of their norm: many tiny ones beside large ones do not matter."""
SMALLEST = 2.0**-24
"""float16's subnormal numbers lie so far apart."""
SCALINGS = frozenset({"mul", "div", "_foreach_mul", "_foreach_div"})
TO_ONE_NUMBER = frozenset({"sum", "mean", "amax", "max"})
EXACT = frozenset({"amax", "max"})
"""A largest element is one of the elements: no dtype rounds it. Overflow checks ask for it."""
FUNCTIONAL = frozenset({"all_reduce", "all_reduce_coalesced", "reduce_scatter_tensor"})
"""Sums over ranks by _c10d_functional, in which DTensor speaks."""


class Gradients(Watcher):
    """PA202's and PA203's evidence, PA209, PA211 and PA501."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        account: Account,
        loss_scale: LossScale,
    ) -> None:
        self._window = window
        self._tensors = tensors
        self._account = account
        self._loss_scale = loss_scale
        self._bus = bus
        self.flow = flow
        self.ledger = ledger
        self.norm_read = False
        """A gradient norm became a Python number since backward."""
        self.sampled = 0
        self.zeros = self.subnormals = self.nonzeros = 0.0
        self.moved: list[float] = []
        """By how much of its norm each sampled gradient was moved where it is subnormal."""
        bus.on(BackwardEnded, self._backward_ended)
        bus.on(ScalerStepBegan, self._scaler_step_began)
        bus.on(Boundary, lambda event: self.take_stock())
        bus.on(StepOver, lambda event: self.step_boundary())

    def _backward_ended(self, event: BackwardEnded) -> None:
        self.norm_read = False

    def reactions(self) -> Iterable[Registration]:
        yield BACKWARD, MATMULS | {"convolution_backward"}, self.sample_float16, False
        yield BACKWARD, REDUCTION_COLLECTIVES, self.reduced, False
        yield GRADIENTS, REDUCTION_COLLECTIVES, self.reduced, False
        for phase in (GRADIENTS, FORWARD):
            yield phase, NORMS, self.norm, False
            yield phase, ("_local_scalar_dense",), self.number, False
        yield GRADIENTS, POINTWISE | SHAPING | (REDUCING - NORMS), self.computed, False

    def sample_float16(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A matmul or convolution of backward: where float16 gradients are first seen to underflow."""
        for gradient in tensors_of([out] if isinstance(out, Tensor) else out):
            if gradient.dtype is torch.float16 and self.sampled < SAMPLED_PER_STEP:
                self.sampled += 1
                self.ledger.defer(underflow(gradient), self._add)

    def _add(self, values: list[float]) -> None:
        self.zeros += values[0]
        self.subnormals += values[1]
        self.nonzeros += values[2]
        if values[3] > 0:  # a value is rounded to the nearest of two neighbours: SMALLEST / sqrt(12) off on average
            self.moved.append(math.sqrt(values[1] / 12) * SMALLEST / values[3])

    def reduced(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A sum over ranks of parameters' gradients; counters, flags and norms are too small or not floating.

        What a forward op's own backward sums is an activation's gradient: tensor parallel layers, SyncBatchNorm.
        """
        nested = [item for arg in args[:2] for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        for tensor in tensors_of([nested])[:1]:
            if not tensor.dtype.is_floating_point or tensor.numel() <= 1:
                continue
            inside = self._window.phase == BACKWARD and not private.differentiates_forward()
            if inside or self._tensors.is_gradient(tensor) or "grad" in self.flow.of(tensor):
                self._reduction(tensor, name)

    def _reduction(self, tensor: Tensor, name: str) -> None:
        by_dtensor = name in FUNCTIONAL and self._window.phase == BACKWARD
        key = (Gradients, Role.GRADIENT_REDUCTION, tensor.dtype, by_dtensor)
        seen = self.ledger.get(key)
        if seen is None:
            made = self._of_dtensor if by_dtensor else self._first_reduction
            seen = self.ledger.put(key, made(DTYPE_NAMES[tensor.dtype], name))
        seen.count += 1
        seen.bytes += tensor.nbytes

    def _of_dtensor(self, dtype: str, name: str) -> Observation:
        """Partial gradients of a weight that tensor parallel ranks share: no reduce_dtype is about that sum."""
        detail = f"{name}, DTensor, of a weight that all ranks of its mesh hold"
        made = Observation(Kind.HOLDS, dtype, Role.GRADIENT_REDUCTION, user_site(), detail=detail)
        made.attrs.update(chosen="framework", by="dtensor")
        return made

    def _first_reduction(self, dtype: str, name: str) -> Observation:
        """Who chose this dtype: the declaration for it, else the framework that reduces, else the user's own loop."""
        declared = self._account.declared(Role.GRADIENT_REDUCTION, dtype)
        chosen = "explicit" if self._window.phase == GRADIENTS else "default"
        if declared is not None:
            chosen = declared.chosen if declared.dtype in ("", dtype) else "framework"
        made = Observation(
            Kind.HOLDS,
            dtype,
            Role.GRADIENT_REDUCTION,
            (declared.site if declared else None) or user_site(),
            detail=f"{name.strip('_')}, {declared.by}" if declared else name.strip("_"),
            attrs={"chosen": chosen},
        )
        if declared is not None and declared.by.endswith("compress_hook"):
            made.attrs["by"] = "hook"
        return made

    def computed(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Values computed from gradients, and from their norms."""
        found: Marks = {}
        for tensor in tensors_of(args):
            if self._tensors.is_gradient(tensor):
                found["grad"] = True
            found.update(self.flow.of(tensor))
        kept: Marks = {mark: True for mark in ("grad", "grad_norm") if mark in found}
        single = isinstance(out, Tensor) and out.numel() == 1
        if name in TO_ONE_NUMBER and "grad" in found and single:
            if name not in EXACT:
                self._norm_is(name, out)
            kept = {"grad_norm": True}
        elif name == "_to_copy" and "grad_norm" in found and single:
            self._norm_is(name, out)
        if kept:
            self.flow.mark(out, **kept)
        if name == "_to_copy" and isinstance(out, Tensor) and (out.dtype in LOW or args[0].dtype in LOW):
            self.flow.mark(out, cast_of=CastOf(self._tensors.learn(args[0]), args[0].dtype))
        if "grad" in found:
            self._changed(name, args, out)
        for chosen in args if name == "where" else ():
            if "clipped" in self.flow.of(chosen):
                self.flow.mark(out, clipped=self.flow.of(chosen)["clipped"])
        if isinstance(out, Tensor) and out.dtype in LOW and (kind_of(name) == "pointwise" or name == "_to_copy"):
            self.flow.low_result(name, args, kwargs, out)

    def _changed(self, name: str, args: Any, out: Any) -> None:
        """Values computed from a gradient that may take its place: clamped, clipped by its norm, or multiplied."""
        if name.startswith("clamp") and isinstance(out, Tensor) and out.numel() > 1:
            owner = self._gradient_among(args[:1])
            if owner is not None and not self._loss_scale.rescaled:
                self._clipped(out, owner)
        elif name in SCALINGS:
            owner = self._gradient_among(args)
            by_norm = any("grad_norm" in self.flow.of(a) for a in args if a is not owner)
            if owner is None or not by_norm or self._loss_scale.read:
                self._bus.tell(GradientsRescaled())
            elif not self._loss_scale.rescaled:
                self._clipped(out, owner)
        elif name in ("add", "sub") and isinstance(out, Tensor) and out.ndim:
            owner = self._gradient_among(args[:1])
            leaf = self._tensors.of(owner).gradient_owner(owner) if owner is not None else None
            if leaf is not None and self._is_unscaled_term(leaf, args[1]):
                self.flow.mark(out, mixed=(user_site(), leaf))

    def _gradient_among(self, args: Iterable[Any]) -> Tensor | None:
        return next((a for a in args if isinstance(a, Tensor) and self._tensors.is_gradient(a)), None)

    def _clipped(self, out: Any, owner: Tensor) -> None:
        """Kept aside; it counts if it takes the gradient's place while that is scaled."""
        self.flow.mark(out, clipped=(user_site(), self._tensors.of(owner).gradient_owner(owner)))

    def norm(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        given = tensors_of(args[:1])
        if not given:
            return
        marks = self.flow.of(given[0])
        if self._tensors.is_gradient(given[0]) or "grad" in marks or "grad_norm" in marks:
            self.flow.mark(out, grad_norm=True)
            for tensor in tensors_of([out] if isinstance(out, Tensor) else out):
                self._norm_is(name, tensor)

    def _norm_is(self, name: str, norm: Tensor) -> None:
        if norm.dtype in FLOATING_DTYPES:
            seen = self.flow.suspect("gradient_norm", Role.GRADIENT_NORM, norm.dtype, name.strip("_"))
            seen.confirmed = True
            if norm.dtype in LOW and seen.count <= 64:
                self.ledger.defer(nonfinite(norm), self.flow.share(seen, "inf_share"))

    def number(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if "grad_norm" in self.flow.of(args[0]):
            self.norm_read = True

    def wrote(self, name: str, targets: list[Tensor], args: Any) -> None:
        """Gradients were changed in place: clipping, unscaling, averaging."""
        factor = args[1] if len(args) > 1 else None
        factors = factor if isinstance(factor, (list, tuple)) else [factor]
        from_norm = any("grad_norm" in self.flow.of(f) for f in factors)
        by_number = self.norm_read and any(isinstance(f, (int, float)) and 0 <= f <= 1 for f in factors)
        base = name.removeprefix("_foreach_").rstrip("_")
        put_back = base == "copy" and "clipped" in self.flow.of(factor)
        if base in ("add", "sub"):
            self._added(targets, factors)
        if base.startswith("clamp") or put_back or (base in ("mul", "div") and (from_norm or by_number)):
            self._clip(targets)
        elif base in ("mul", "div", "copy"):
            self._bus.tell(GradientsRescaled())

    def _clip(self, gradients: list[Tensor]) -> None:
        owners = [self._tensors.of(gradient).gradient_owner(gradient) for gradient in gradients]
        scaled = any(leaf is not None and leaf.scaled is not None for leaf in owners)
        if not scaled or self._loss_scale.may_be_gone:
            return
        self.clip_is_scaled(gradients[0], user_site())

    def _added(self, gradients: list[Tensor], added: Iterable[Any]) -> None:
        """Weight decay and penalties added to gradients by hand: to scaled ones, they count for next to nothing."""
        for gradient, value in zip(gradients, added, strict=False):
            leaf = self._tensors.of(gradient).gradient_owner(gradient)
            if leaf is not None and self._is_unscaled_term(leaf, value):
                self._bus.tell(AddedUnscaled(leaf.scaled[0]() if leaf.scaled else None, user_site()))

    def _is_unscaled_term(self, leaf: Leaf, value: Any) -> bool:
        """Whether this, added to a gradient that carries the scale, is no gradient itself."""
        if leaf.scaled is None or not isinstance(value, Tensor) or not value.ndim or self._loss_scale.may_be_gone:
            return False
        marks = self.flow.of(value)
        return not (self._tensors.is_gradient(value) or "grad" in marks or "from_gradient" in marks)

    def clip_is_scaled(self, gradient: Tensor, site: Site | None) -> None:
        """A clip at this line met gradients that carry the loss scale."""
        self.ledger.once(
            (Gradients, Kind.CLIP),
            Observation(
                Kind.CLIP,
                DTYPE_NAMES.get(gradient.dtype, ""),
                Role.GRADIENT,
                site,
                attrs={"scaled": True},
            ),
        )

    def _scaler_step_began(self, event: ScalerStepBegan) -> None:
        """A gradient was replaced by its clamped values, or its sum with others, while it still carried the scale."""
        scale = self._loss_scale
        if not event.unscales or scale.may_be_gone:
            return
        for p in parameters(event.optimizer):
            marks = self.flow.of(p.grad)
            if "mixed" in marks and marks["mixed"][1] is self._tensors.leaf(p) and scale.is_on(p):
                self._bus.tell(AddedUnscaled(event.scaler, marks["mixed"][0]))
            clipped = marks.get("clipped")
            if clipped is not None and clipped[1] is self._tensors.leaf(p) is not None and scale.is_on(p):
                self.clip_is_scaled(p, clipped[0])

    def take_stock(self) -> None:
        """float16 gradients that are subnormal although the loss was scaled: the scale is too small."""
        share = self.subnormals / self.nonzeros if self.nonzeros else 0.0
        harm = sum(self.moved) / len(self.moved) if self.moved else 0.0
        for scaled in (False, True):
            key = Float16Gradients(scaled)
            if key not in self.ledger.observations or not self.nonzeros:
                continue
            seen = self.ledger.observations[key]
            seen.evidence["gradient_underflow"] = share
            seen.evidence["gradient_rounding"] = harm
            seen.evidence["gradient_zeros"] = self.zeros / (self.zeros + self.nonzeros)
            falling = self._window.stuck  # skipped steps brought the scale down: PA210 says why
            # Without any scaling PA201 says it, with the same number.
            if share >= UNDERFLOW and harm >= HARM and scaled and not falling:
                seen.attrs["underflow"] = seen.confirmed = True
            seen.count = 0  # values inside the graph; the role's row counts `.grad` tensors

    def step_boundary(self) -> None:
        self.norm_read = False
        self.sampled = 0
