"""Measures the damage: replays a step's in-place updates in float32 on samples and compares what was kept.

Shares are ratios in 0..1 over sampled elements (at most 65,536 per tensor, all of them under `--values full`); nothing
here draws a random number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..guard import is_programs_own
from ..process.ledger import Ledger

SAMPLE = 65_536
_limits = {"off": 0, "sample": SAMPLE, "full": sys.maxsize}
_limit = SAMPLE


def look_at(values: str) -> None:
    """Sets how many elements of a tensor are looked at: "off", "sample" or "full"."""
    global _limit
    _limit = _limits[values]


def limit() -> int:
    """How many elements of one tensor may be looked at; 0 where nothing is measured."""
    return _limit


REPLAYABLE = frozenset(
    f"{prefix}{name}"
    for name in ("add_", "sub_", "mul_", "div_", "lerp_", "addcmul_", "addcdiv_", "copy_", "neg_", "sqrt_", "clamp_")
    for prefix in ("", "_foreach_")
) | frozenset({"_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_", "maximum_", "pow_"})
"""Deterministic, elementwise in-place ops: running them again on copies disturbs nothing."""


def sample(tensor: Tensor) -> Tensor | None:
    """At most `limit()` elements, evenly strided, flat; None where none are wanted or the whole would be copied."""
    if not _limit:
        return None
    if tensor.numel() <= _limit:
        return tensor.detach().reshape(-1)
    if not tensor.is_contiguous():
        return None
    stride = -(-tensor.numel() // _limit)
    return tensor.detach().view(-1)[::stride]


class Shadow:
    """One low-precision tensor, what it held when the update began, and what float32 would hold now."""

    __slots__ = ("before", "exact", "group", "tensor", "whole")

    def __init__(self, tensor: Tensor, group: str, whole: bool) -> None:
        self.tensor = tensor.detach()
        self.group = group
        self.whole = whole
        self.before = self.tensor.clone() if whole else _sampled(tensor).clone()
        self.exact = self.before.float()

    def measure(self) -> list[Tensor]:
        """Elements that should move, those that did not, ‖error‖², ‖exact step‖², ‖exact‖²; 0-d tensors."""
        after = self.tensor if self.whole else _sampled(self.tensor)
        step = self.exact - self.before.float()
        should = step != 0
        stuck = should & (after == self.before)
        applied = after.float() - self.before.float()
        wrong = (applied - step).square().sum()
        return [should.sum(), stuck.sum(), wrong, step.square().sum(), self.exact.square().sum()]


Place = tuple[int, int, int]
"""Storage, offset, elements."""


def _overlap(one: Place, other: Place) -> bool:
    return one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


def _place(tensor: Tensor) -> Place:
    """A view's own key: one allocation may hold many parameters."""
    return private.storage_key(tensor), tensor.storage_offset(), tensor.numel()


def _sampled(tensor: Tensor) -> Tensor:
    out = sample(tensor)
    assert out is not None
    return out


class Replay:
    """The shadows of one step."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.shadows: dict[Place, Shadow] = {}
        self._places: dict[int, set[Place]] = {}
        """Storage -> where in it there are shadows."""

    def follow(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], targets: list[Tensor], group: str
    ) -> None:
        """Runs the same in-place op on the shadows of its low-precision targets. Call before the op itself runs."""
        sizes = {tensor.numel() for tensor in _tensors(args, kwargs) if tensor.numel() > 1}
        flat = len(sizes) <= 1 or func._schema.name.startswith("aten::_f")
        if not flat and max(sizes) > _limit:
            return
        whole = not flat
        try:
            for target in targets:
                key = _place(target)
                if key not in self.shadows or self.shadows[key].tensor.shape != target.shape:
                    self._keep(key, Shadow(target, group, whole))
                elif self.shadows[key].whole is not whole and target.numel() > _limit:
                    return
            func(*[self._upcast(a, whole) for a in args], **{k: self._upcast(v, whole) for k, v in kwargs.items()})
        except Exception as error:
            if is_programs_own(error):
                raise
            for target in targets:
                self._drop(_place(target))

    def _keep(self, key: Place, shadow: Shadow) -> None:
        """Keeps a shadow; those of views that share elements with it no longer hold what float32 would."""
        for other in [other for other in self._places.get(key[0], ()) if _overlap(key, other)]:
            self._drop(other)
        self.shadows[key] = shadow
        self._places.setdefault(key[0], set()).add(key)

    def _drop(self, key: Place) -> Shadow | None:
        shadow = self.shadows.pop(key, None)
        if shadow is not None:
            self._places[key[0]].discard(key)
            if not self._places[key[0]]:
                del self._places[key[0]]
        return shadow

    def _upcast(self, value: Any, whole: bool) -> Any:
        if isinstance(value, Tensor):
            shadow = self.shadows.get(_place(value))
            if shadow is not None and shadow.tensor.shape == value.shape:
                if shadow.whole == whole:
                    return shadow.exact
                return shadow.exact.reshape(-1) if not whole else shadow.exact.reshape(shadow.tensor.shape)
            if not value.dtype.is_floating_point:
                return value
            small = value.detach() if whole or value.numel() == 1 else _sampled(value)
            return small.to(torch.float32, copy=True)
        if isinstance(value, (list, tuple)):
            return type(value)(self._upcast(item, whole) for item in value)
        if isinstance(value, torch.dtype):
            return torch.float32
        return value

    def forget(self, tensor: Tensor) -> None:
        """Drops what shadows any part of the tensor's storage: it is written to by something that is not replayed."""
        if self.shadows:
            key = _place(tensor)
            for other in [other for other in self._places.get(key[0], ()) if _overlap(key, other)]:
                self._drop(other)

    def finish(
        self,
        use: Callable[[str, Tensor, dict[str, float]], None],
        group: str | None = None,
        storages: Collection[int] | None = None,
    ) -> None:
        """Measures the shadows (of one group, in these storages) and drops them.

        `use` gets each tensor's numbers at the next settle.
        """
        done = [
            key
            for key, shadow in self.shadows.items()
            if (group is None or shadow.group == group) and (storages is None or key[0] in storages)
        ]
        for key in done:
            shadow = self._drop(key)
            # FSDP2 frees what it gathered by shrinking its storage to nothing: reading that would end the process.
            if shadow is None or not shadow.tensor.untyped_storage().nbytes():
                continue
            self.ledger.defer(shadow.measure(), _reader(shadow, use))


def _reader(shadow: Shadow, use: Callable[[str, Tensor, dict[str, float]], None]) -> Callable[[list[float]], None]:
    tensor, group = shadow.tensor, shadow.group

    def read(values: list[float]) -> None:
        names = ("should_move", "stuck", "error2", "step2", "exact2")
        use(group, tensor, dict(zip(names, values, strict=True)))

    return read


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    out: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (list, tuple)):
            out += [item for item in value if isinstance(item, Tensor)]
    return out


def underflow(tensor: Tensor) -> list[Tensor]:
    """Zeros, subnormals, non-zeros and non-finite values among the sampled elements; 0-d tensors, no sync."""
    if not _limit:
        return []
    values = sample(tensor)
    if values is None:
        values = tensor.detach().reshape(-1)[:_limit]
    size = values.abs()
    nonzero = size > 0
    subnormal = nonzero & (size < torch.finfo(values.dtype).smallest_normal)
    return [(~nonzero).sum(), subnormal.sum(), nonzero.sum(), (~torch.isfinite(values)).sum()]


def nonfinite(tensor: Tensor) -> list[Tensor]:
    """Sampled elements that are inf or nan, sampled elements, and the largest magnitude; 0-d tensors, no sync."""
    if not _limit:
        return []
    values = sample(tensor)
    if values is None:
        values = tensor.detach().reshape(-1)[:_limit]
    bad = ~torch.isfinite(values)
    largest = torch.where(bad, torch.zeros_like(values), values).abs().amax().float()
    return [bad.sum(), torch.full_like(largest, values.numel()), largest]
