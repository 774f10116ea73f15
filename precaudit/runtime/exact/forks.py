"""What the step would be if its matmuls ran in another format: companions that round operands, of all layers or of one.

A fork holds only what differs from the exact step. It begins at its first matmul, goes through forward and backward,
and ends where the optimizer's step begins, with how far its loss and its gradients are from the exact ones: what is
measured is the format's doing alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .companions import Companions, wide
from .formats import FORMATS, Rounding
from .places import PHASES, Place
from .recipes import Recipe
from .rows import relative

MATMULS: Mapping[str, tuple[int, int]] = {
    "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2), "matmul": (0, 1),
}  # fmt: skip
"""Op -> where its operands stand: a sum over the last dimension of the first and the last but one of the second."""
MOST_LAYERS = 24
"""Layers that get a fork of their own, in the order in which they first run."""


class Fork:
    """One format, in all layers or in one."""

    def __init__(self, name: str, layer: str | None, rounding: Rounding) -> None:
        self.format, self.layer, self._rounding = name, layer, rounding
        self.values = Companions()
        self.loss: float | None = None
        """The error of the loss, relative to the exact one."""
        self.gradients: float | None = None
        """That of all gradients, as one vector."""

    def rounds(self, module: str) -> bool:
        return self.layer is None or self.layer == module

    def round(self, name: str, args: list[Any]) -> None:
        """Puts rounded operands in the place of the exact ones."""
        for at, dim in zip(MATMULS[name], (-1, -2), strict=True):
            args[at] = self._rounding.into(self.format, args[at], dim).values


class Matmul:
    """The operands of the matmuls of one layer in one phase, rounded into one format."""

    __slots__ = ("elements", "error", "flushed", "result", "saturated", "times")

    def __init__(self) -> None:
        self.times = self.elements = 0
        self.error = self.result = 0.0
        """Of the worse operand, and of what the matmul gives of both; the worst of all times."""
        self.flushed = self.saturated = 0


class Asked(NamedTuple):
    """What `--format` and `--rounding` say."""

    formats: tuple[str, ...]
    stochastic: bool


class Forks:
    """All forks of one step."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._rounding = asked, Rounding(asked.stochastic)
        self.all = [Fork(name, None, self._rounding) for name in asked.formats]
        self.open = True
        """Until the optimizer's step begins."""
        self.matmuls: dict[tuple[str, str, str], Matmul] = {}
        """(layer, phase, format) -> its operands."""
        self._layers: set[str] = set()
        self.left_out: set[str] = set()
        """Layers without a fork of their own."""

    def meets(self, name: str, place: Place) -> bool:
        """Whether this op is a matmul; a layer's first one begins its fork."""
        if name not in MATMULS:
            return False
        if place.module and place.module not in self._layers:
            if len(self._layers) < MOST_LAYERS:
                self._layers.add(place.module)
                self.all.append(Fork(self._asked.formats[0], place.module, self._rounding))
            else:
                self.left_out.add(place.module)
        return True

    def measure(self, recipe: Recipe, place: Place, args: list[Any]) -> None:
        """What each format makes of the operands as they really are, and of the product."""
        operands = [args[at] for at in MATMULS[recipe.name]]
        product = torch.matmul(*operands)
        phase = "forward" if place.phase == PHASES[0] else "backward"
        for name in self._asked.formats:
            row = self.matmuls.setdefault((place.module, phase, name), Matmul())
            made = [self._rounding.into(name, one, dim) for one, dim in zip(operands, (-1, -2), strict=True)]
            errors = [_error(one.values, operand) for one, operand in zip(made, operands, strict=True)]
            row.times += 1
            row.error = max(row.error, *errors)
            row.result = max(row.result, _error(torch.matmul(made[0].values, made[1].values), product))
            row.elements += sum(one.numel() for one in operands)
            row.flushed += sum(int(one.flushed) for one in made)
            row.saturated += sum(int(one.saturated) for one in made)

    def loss(self, root: Tensor, exact: Tensor) -> None:
        for fork in self.all:
            found = fork.values.of(root)
            fork.loss = max(fork.loss or 0.0, 0.0 if found is None else _error(found, exact))

    def gradients(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """The gradients that the optimizer is about to read, each beside its exact one: the forks are over."""
        size = math.hypot(*(float(torch.linalg.vector_norm(exact)) for _, exact in pairs))
        for fork in self.all:
            off = [
                float(torch.linalg.vector_norm(found - exact))
                for real, exact in pairs
                if (found := fork.values.of(real)) is not None
            ]
            fork.gradients = relative(math.hypot(*off), size, size)

    def close(self) -> None:
        self.open = False
        for fork in self.all:
            fork.values.clear()

    def content(self) -> dict[str, Any]:
        """All of it as plain values."""
        whole = [fork for fork in self.all if fork.layer is None]
        layers = sorted((f for f in self.all if f.layer is not None), key=lambda f: -_order(f.gradients))
        return {
            "stochastic": self._asked.stochastic,
            "formats": [{"format": f.format, "loss": _known(f.loss), "gradients": _known(f.gradients)} for f in whole],
            "layers": [
                {"format": f.format, "layer": f.layer, "loss": _known(f.loss), "gradients": _known(f.gradients)}
                for f in layers
            ],
            "left_out": len(self.left_out),
            "matmuls": list(self._rows()),
        }

    def _rows(self) -> Iterator[dict[str, Any]]:
        for (layer, phase, name), row in self.matmuls.items():
            yield {
                "layer": layer,
                "phase": phase,
                "format": name,
                "times": row.times,
                "error": _known(row.error),
                "result": _known(row.result),
                "flushed": row.flushed / row.elements if row.elements else 0.0,
                "saturated": row.saturated / row.elements if row.elements else 0.0,
            }


class Held:
    """The tensors of one role, as they would be in each format."""

    def __init__(self, role: str, dtype: str, keeps: bool) -> None:
        self.role, self.dtype, self.keeps = role, dtype, keeps
        """Whether it is carried from step to step."""
        self.bytes = self.elements = 0
        self.sums: dict[str, list[float]] = {}
        """Format -> squares of the error, of the values, of what the step added to them; elements flushed."""


class Roles:
    """What weights, gradients and optimizer state would be in each format, and what of a step they would keep."""

    def __init__(self, asked: Asked) -> None:
        self._formats, self._rounding = asked.formats, Rounding(asked.stochastic)
        self._held: dict[tuple[str, str], Held] = {}

    def add(self, role: str, dtype: str, tensor: Tensor, before: Tensor | None, keeps: bool) -> None:
        """One tensor; `before` is what it held when the step began, where it is carried on."""
        held = self._held.setdefault((role, dtype), Held(role, dtype, keeps))
        held.bytes += tensor.numel() * tensor.element_size()
        held.elements += tensor.numel()
        values = wide(tensor)
        moved = _square(values - wide(before)) if before is not None else 0.0
        for name in self._formats:
            made = self._rounding.into(name, values)
            sums = held.sums.setdefault(name, [0.0] * 4)
            for at, one in enumerate((_square(made.values - values), _square(values), moved, float(made.flushed))):
                sums[at] += one

    def content(self) -> list[dict[str, Any]]:
        return [
            {
                "role": held.role,
                "dtype": held.dtype,
                "bytes": held.bytes,
                "format": name,
                "saves": max(0, round(held.bytes - held.elements * FORMATS[name].bits / 8)),
                "error": _known(math.sqrt(error / size)) if size else 0.0,
                "flushed": flushed / held.elements if held.elements else 0.0,
                "of_the_step": _known(math.sqrt(error / moved)) if held.keeps and moved else None,
            }
            for held in self._held.values()
            for name, (error, size, moved, flushed) in held.sums.items()
        ]


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _error(found: Tensor, exact: Tensor) -> float:
    size = float(torch.linalg.vector_norm(exact))
    error = float(torch.linalg.vector_norm(found - exact))
    return relative(error, size, size) if math.isfinite(error) else math.inf


def _order(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else value


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
