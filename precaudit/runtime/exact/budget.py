"""The error budget of a step: how far each quantity is from what it should be, and in which stage that was lost."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import DTYPE_NAMES
from .companions import wide
from .follower import Follower
from .rows import relative

SMALL_ANGLE = 1e-3
"""Radians; nothing is said of phases that are off by less."""


class Line(NamedTuple):
    """One quantity."""

    what: str
    """"loss", "log-probabilities", "logits", "activation", "phases", "before reduction", "gradient",
    "gradient norm", "update" or "state"."""
    name: str
    """The parameter's, the module's, or, of state, both the parameter's and the optimizer's own."""
    dtype: str
    error: float | None
    """The norm of the error over that of the exact value; None where the exact value is zero, or is not known."""
    absolute: float | None = None
    """The norm of the error; of log-probabilities its mean size, in nats; of phases the largest, in radians."""
    size: float | None = None
    """The norm of the exact value."""
    partial: bool = False
    """Something that could not be followed went into it."""
    nil: bool = False
    """The exact gradient is zero: this is made of rounding alone."""
    split: dict[str, float] = {}
    """Stage -> the norm of what was lost there, over the norm of the exact value."""


class Budget:
    """The lines of one step."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.lines: list[Line] = []
        self._nil: set[int] = set()
        """Parameters, by id, whose exact gradient is zero."""
        self._begun: dict[int, Tensor] = {}
        """id of a parameter -> what it held before the step."""
        self._logits: tuple[int, Tensor, str] | None = None
        """The record of what a log-softmax was given, the mean error of what it gave, its dtype."""
        self._reduced: list[tuple[float, float, bool]] = []
        """Error and size of what was about to be added up over the ranks, and whether it was followed all the way."""
        follower.on_softmax = self._softmax
        follower.on_reduction = self._reduction

    # -- what is measured when

    def _softmax(self, logits: Tensor, gave: Tensor) -> None:
        entry, exact = self._follower.main.find(logits), self._follower.main.of(gave)
        if entry is not None and exact is not None:
            self._logits = (entry.record, (wide(gave) - exact).abs().mean(), DTYPE_NAMES[logits.dtype])

    def _reduction(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            line = self._line("reduced", "", tensor)
            if line.error is not None and line.absolute is not None and line.size is not None:
                self._reduced.append((line.absolute, line.size, line.partial))

    def loss(self, root: Tensor) -> None:
        self._follower.effects.begins(root)
        if self._is_asked_for(root):
            self.lines.append(self._line("loss", "", root))

    def _is_asked_for(self, tensor: Tensor) -> bool:
        """Whether its error is: where only some modules are followed, that of what comes of them alone."""
        return self._follower.scope.is_whole or self._follower.main.find(tensor) is not None

    def gradients(self, named: list[tuple[str, Tensor]]) -> None:
        """What the optimizer is about to read, and their norm together."""
        norms, exacts, partial = [], [], False
        for name, parameter in named:
            own = private.local(parameter)
            self._begun[id(parameter)] = own.detach().clone()
            self._follower.watched[private.storage_key(own)] = None
            if parameter.grad is None or not self._is_asked_for(private.local(parameter.grad)):
                continue
            line = self._line("gradient", name, private.local(parameter.grad), ("forward", "backward"))
            if line.error is None and not line.partial:
                line = line._replace(nil=True)
                self._nil.add(id(parameter))
            self.lines.append(line)
            norms.append(float(torch.linalg.vector_norm(wide(private.local(parameter.grad)))))
            exacts.append(line.size or 0.0)
            partial |= line.partial
        now, size = math.hypot(*norms), math.hypot(*exacts)
        if norms and self._follower.scope.is_whole:
            off = abs(now - size)
            self.lines.append(Line("gradient norm", "", "", _known(relative(off, size, now)), off, size, partial))

    def again(self) -> None:
        """More is added to the gradients: those that were measured were not the last."""
        self.lines = [line for line in self.lines if not line.what.startswith("gradient")]

    def updates(self, named: list[tuple[str, Tensor]]) -> None:
        """What the parameters moved by."""
        for name, parameter in named:
            before, own = self._begun.pop(id(parameter), None), private.local(parameter)
            if before is None or not self._is_asked_for(own):
                continue
            line = self._line("update", name, own, ("gradient", "optimizer"), before)
            rounded = self._follower.watched.pop(private.storage_key(own), None)
            if rounded is not None and line.size and line.split:
                line.split["write-back"] = float(rounded) / line.size
            self.lines.append(self._judged(line, parameter))

    def state(self, name: str, tensor: Tensor, parameter: Tensor | None) -> None:
        if not self._is_asked_for(tensor):
            return
        line = self._line("state", name, tensor, ("gradient", "optimizer"))
        self.lines.append(line if parameter is None else self._judged(line, parameter))

    def finish(self) -> None:
        """The step is over, and what the operations lost has been read."""
        distances = self._follower.rows.distances
        found = [
            Line("activation", module, "", _known(distances[record]))
            for module, record in self._follower.layers.items()
        ]
        if self._logits is not None:
            record, nats, dtype = self._logits
            error = _known(distances[record]) if record >= 0 else None
            found += [Line("logits", "", dtype, error), Line("log-probabilities", "", dtype, None, float(nats))]
        if self._reduced:
            error, size = (math.hypot(*(one[at] for one in self._reduced)) for at in (0, 1))
            partial = any(one[2] for one in self._reduced)
            found.append(Line("before reduction", "", "", _known(relative(error, size, size)), error, size, partial))
        if (phases := max((float(one) for one in self._follower.phases), default=0.0)) > SMALL_ANGLE:
            found.append(Line("phases", "", "", None, phases))
        self._follower.effects.settle()
        self.lines[:0] = found

    # -- comparing

    def _judged(self, line: Line, parameter: Tensor) -> Line:
        return line._replace(error=None, nil=True) if id(parameter) in self._nil else line

    def _line(
        self, what: str, name: str, real: Tensor, stages: tuple[str, ...] = (), before: Tensor | None = None
    ) -> Line:
        """Compares a tensor, or what was added to it since `before`, with what it should be."""
        entry = self._follower.main.find(real)
        now, exact = wide(real), wide(real) if entry is None else entry.view(real)
        start = 0.0 if before is None else wide(before)
        middle, late = self._follower.stage.of(real) if stages else None, self._follower.late.of(real)
        last = now if late is None else late
        vectors = [now - exact, exact - start, now - start]
        vectors += [middle - exact, last - middle] if middle is not None else []
        vectors += [now - late] if middle is not None and late is not None else []
        error, size, length, *lost = torch.stack(torch._foreach_norm(vectors)).tolist()
        share = relative(error, size, length)
        split: dict[str, float] = {}
        if lost and size and math.isfinite(share):
            names = (*stages, "reduction")[: len(lost)]
            split = {name: value / size for name, value in zip(names, lost, strict=True)}
        return Line(
            what,
            name,
            DTYPE_NAMES[real.dtype],
            _known(share) if entry is not None else None,
            _known(error),
            _known(size),
            entry is None or entry.partial,
            False,
            split,
        )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
