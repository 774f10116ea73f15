"""Follows what an update rounds away, where the script keeps it: stochastic rounding, Kahan summation, scaled state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..dtypes import LOW
from ..operands import sources_of, tensors_of
from ..operations import GRADIENTS, OPTIMIZER, Heard, Op, Operations
from ..optable import COPIES
from .lineage import CastOf, Flow
from .tensors import Tensors

DRAWS = frozenset({"randint", "randint_like", "random_", "random"})
BITWISE = frozenset("add sub bitwise_and bitwise_or __and__ __or__ where lt gt le ge".split())
BITS = (torch.int32, torch.int64, torch.int16)
SUMS = frozenset({"add", "_foreach_add"})
DIFFERENCES = frozenset({"clone", "sub", "_foreach_sub", "_foreach_clone"})


class Compensation:
    """By marks: "random" bits, a parameter as it was "before" its update, the "delta" of the two.

    What a parameter's rounding lost is also the exact value less the parameter, "widened", or what was added to it,
    "adds", less how far it "moved"; state divided by a scale of its own is "scaled".
    """

    def __init__(self, operations: Operations, tensors: Tensors, flow: Flow) -> None:
        self._tensors, self._flow = tensors, flow
        operations.on(self._hear)

    def _hear(self, op: Op) -> Iterable[Heard]:
        if op.name == "_to_copy":
            yield Heard(OPTIMIZER, self.rounded)
        if op.name == "div":
            yield Heard(OPTIMIZER, self.scaled)
        for names, act in ((SUMS, self.adds), (DIFFERENCES, self.differs), (DRAWS, self.drawn), (BITWISE, self.bits)):
            if op.name in names:
                yield Heard(OPTIMIZER, act)
                yield Heard(GRADIENTS, act)

    def rounded(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A low-precision copy of a wider value: of which one, and whether it rounds stochastically."""
        source = args[0]
        if out.dtype in LOW and source.dtype not in LOW:
            drawn = {"random": True} if "random" in self._flow.of(source) else {}
            if "scaled" in self._flow.of(source):
                drawn["scaled"] = True
            self._flow.mark(out, cast_of=CastOf(self._tensors.learn(source), source.dtype), **drawn)
        elif source.dtype in LOW and out.dtype not in LOW and self._tensors.is_parameter(source):
            known = self._tensors.of(source)
            self._flow.mark(out, widened=CastOf(known, source.dtype, known.version))

    def scaled(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """State over its largest value, or over that of each row: what float16 lacks is range."""
        scale = args[1]
        if isinstance(scale, Tensor) and scale.numel() < out.numel() and out.dtype not in LOW:
            self._flow.mark(out, scaled=True)

    def differs(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """A copy of a parameter, and what its rounding lost: the copy less the parameter after the update."""
        for index, result in enumerate(tensors_of([out])):
            if result.dtype not in LOW:
                if not name.endswith("clone") and (not kwargs or kwargs.get("alpha", 1) == 1):
                    self._what_is_left(sources_of(args, index), result)
                continue
            sources = sources_of(args, index)
            if name.endswith("clone"):
                if self._tensors.is_parameter(sources[0]):
                    self._flow.mark(result, before=True)
                continue
            changed = next((s for s in sources if self._tensors.is_parameter(s)), None)
            if changed is not None and any("before" in self._flow.of(s) for s in sources):
                self._flow.mark(result, delta=self._tensors.learn(changed))

    def adds(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """What is added to a wide copy of a parameter that is then rounded; or to how far that moved."""
        if kwargs and kwargs.get("alpha", 1) != 1:  # something else is added
            return
        for index, result in enumerate(tensors_of([out])):
            sources = sources_of(args, index)
            if result.dtype in LOW or len(sources) != 2:
                continue
            for one, other in (sources, reversed(sources)):
                moved = self._flow.of(one).get("moved")
                if self._widened(one) is not None:
                    self._flow.mark(result, adds=self._tensors.learn(other))
                elif moved is not None and moved.moved_by is self._tensors.of(other):
                    self._flow.mark(result, left_of=moved)

    def _what_is_left(self, sources: list[Tensor], result: Tensor) -> None:
        """Of what a parameter was to become, or of what was added to it, that which the rounding took away."""
        if len(sources) != 2:
            return
        exact, rounded = sources
        one, other = self._widened(exact), self._widened(rounded)
        if one is not None and other is not None and one.source is other.source and one.version != other.version:
            self._flow.mark(result, moved=one.source)
            return
        moved = self._flow.of(rounded).get("moved")
        if moved is not None:
            if moved.moved_by is self._tensors.of(exact):
                self._flow.mark(result, left_of=moved)
            return
        known = self._tensors.of(rounded)
        if not self._tensors.is_parameter(rounded):
            if other is None or other.source.version != other.version:
                return
            known = other.source
        if known.copied_from is not None and known.copied_from is self._tensors.of(exact):
            self._flow.mark(result, left_of=known)

    def _widened(self, tensor: Tensor) -> CastOf | None:
        """Of which parameter, as it was when, this is a wide copy."""
        found: CastOf | None = self._flow.of(tensor).get("widened")
        return found

    def drawn(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Random integers: what stochastic rounding adds below the last place that is kept."""
        if out.dtype in BITS:
            self._flow.mark(out, random=True)

    def bits(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Integers, and the comparisons that choose between them, computed from random ones."""
        if not out.dtype.is_floating_point and any("random" in self._flow.of(a) for a in args):
            self._flow.mark(out, random=True)

    def wrote(self, name: str, target: Tensor, sources: list[Tensor]) -> None:
        """Kahan summation adds to a buffer what the parameter's rounding lost: the parameter before less after."""
        for source in sources:
            of = self._flow.of(source) if name in COPIES else {}
            if "scaled" in of:
                self._flow.mark(target, scaled=True)
            elif "left_of" in of:
                self._tensors.learn(target).compensates = True
                of["left_of"].written("kahan")
            if name in COPIES and self._tensors.is_parameter(source):
                self._flow.mark(target, before=True)
            elif name == "sub_" and "before" in self._flow.of(target) and self._tensors.is_parameter(source):
                self._flow.mark(target, delta=self._tensors.learn(source))
            elif name in ("add_", "sub_", *COPIES):
                changed = self._flow.of(source).get("delta")
                if changed is not None and changed.moved_by is self._tensors.of(target):
                    self._tensors.learn(target).compensates = True
                    changed.written("kahan")
