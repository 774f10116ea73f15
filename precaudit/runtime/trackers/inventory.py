"""What stands under each name: weights, gradients, buffers, state by slot, what modules compute; equal names folded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..dtypes import DTYPE_NAMES
from ..events import Bus, StepEnded
from .computing import Computing, class_of
from .contents import Contents
from .modules import Modules
from .optimizers import group_tensors, nbytes, parameters
from .window import Window

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a name that is a number: the 3 of `blocks.3.attn`."""
EXCEPTIONS = 16
"""So many names may stand apart from their pattern; where there are more, the pattern tells all their dtypes."""
DISTRIBUTE = frozenset({"torch", "deepspeed", "lightning", "pytorch_lightning"})
"""Packages whose modules hold the user's under the name `module`."""

Held = dict[str, tuple[str, ...]]
"""What it is -> its dtypes, sorted: {"weight": ("float32",), "AdamW.exp_avg": ("float32",)}."""


class Inventory:
    """Reads each optimizer, and the modules that hold its parameters, once: when its first traced step is over."""

    def __init__(self, bus: Bus, window: Window, modules: Modules, contents: Contents, computing: Computing) -> None:
        self._window, self._modules, self._contents, self._computing = window, modules, contents, computing
        self._held: dict[str, Held] = {}
        self.models: dict[str, int] = {}
        """Class of what was trained -> elements of its parameters, frozen ones too."""
        self._bytes: dict[str, dict[str, int]] = {}
        """Name -> what it is -> bytes."""
        self._read: set[int] = set()
        """Optimizers and outermost modules, by id: two that share one after the other tell their names alone."""
        self._elsewhere: set[str] = set()
        """Parameters of which this rank holds nothing, as FSDP1 shards them: the rank that holds them tells."""
        bus.on(StepEnded, self._step_ended)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each pattern of names, as the plain values of a report's `inventory`."""
        held = {name: dict(mine) for name, mine in self._held.items()}
        for name, computed in self._computing.held.items():
            held.setdefault(name, {}).update({what: tuple(sorted(dtypes)) for what, dtypes in computed.items()})
        rows = sorted(folded(held))
        apart = {name for name, _, _ in rows if "*" not in name}
        sizes: dict[str, dict[str, int]] = {}
        for name, mine in self._bytes.items():
            row = sizes.setdefault(name if name in apart else NUMBER.sub("*", name), {})
            for what, size in mine.items():
                row[what] = row.get(what, 0) + size
        return [
            {"name": name, "tensors": count, "dtypes": dtypes, "bytes": sizes.get(name, {})}
            for name, count, dtypes in rows
        ]

    def _step_ended(self, event: StepEnded) -> None:
        if self._window.tracing and id(event.optimizer) not in self._read:
            self._read.add(id(event.optimizer))
            self._optimizer(event.optimizer)

    def _optimizer(self, optimizer: Any) -> None:
        kind = type(optimizer).__name__
        names: dict[int, str] = {}
        roots: dict[int, Any] = {}
        for number, parameter in enumerate(parameters(optimizer)):
            name = names[id(parameter)] = self._modules.name(parameter) or f"{kind}.params.{number}"
            if not parameter.numel():
                self._elsewhere.add(name)
                continue
            self._note(name, "weight", parameter)
            if parameter.grad is not None:
                self._note(name, "gradient", parameter.grad)
            root = self._modules.around(self._modules.holder(parameter))[-1]
            if root is not None:
                roots[id(root)] = root
        for held in self._contents.kept(optimizer):
            owner = names.get(id(held.parameter)) if held.parameter is not None else None
            what = sys.intern(f"{kind}.{held.name}")  # one string for all parameters
            if owner not in self._elsewhere:
                self._note(owner or what, what, held.tensor)
        for name, hyperparameter in group_tensors(optimizer):
            self._note(kind, f"{kind}.{name}", hyperparameter)
        for key, root in roots.items():
            if key not in self._read:
                self._read.add(key)
                inner = unwrapped(root)
                self.models[class_of(inner)] = sum(parameter.numel() for parameter in inner.parameters())
                self._beside(root.named_parameters(), "weight")
                self._beside(root.named_buffers(), "buffer")

    def _beside(self, named: Iterable[tuple[str, Tensor]], what: str) -> None:
        """What the model holds and no optimizer trains: frozen weights, buffers."""
        for name, tensor in named:
            if name not in self._held and name not in self._elsewhere:
                self._note(name, what, tensor)

    def _note(self, name: str, what: str, tensor: Tensor) -> None:
        dtype = DTYPE_NAMES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
        self._held.setdefault(name, {})[what] = (dtype,)
        self._bytes.setdefault(name, {})[what] = nbytes(tensor)


def unwrapped(module: Any) -> Any:
    """The user's own module inside what distributes or compiles it: DDP, FSDP1, DeepSpeedEngine, OptimizedModule."""
    while type(module).__module__.partition(".")[0] in DISTRIBUTE:
        inner = next((module._modules[name] for name in ("module", "_orig_mod") if name in module._modules), None)
        if inner is None:
            break
        module = inner
    return module


def folded(held: Mapping[str, Held]) -> list[tuple[str, int, dict[str, list[str]]]]:
    """(name or pattern, tensors of that name, what they hold): `blocks.*.norm.weight`, and exceptions by their name.

    A name of its own goes before the pattern that it would fit.
    """
    groups: dict[str, dict[tuple[tuple[str, tuple[str, ...]], ...], list[str]]] = {}
    for name, kinds in held.items():
        groups.setdefault(NUMBER.sub("*", name), {}).setdefault(tuple(sorted(kinds.items())), []).append(name)
    rows = []
    for pattern, varieties in groups.items():
        usual = max(varieties, key=lambda kinds: (len(varieties[kinds]), kinds))
        others = {kinds: names for kinds, names in varieties.items() if kinds != usual}
        if sum(map(len, others.values())) > EXCEPTIONS:
            every: dict[str, set[str]] = {}
            for what, dtypes in (kind for kinds in varieties for kind in kinds):
                every.setdefault(what, set()).update(dtypes)
            count = sum(map(len, varieties.values()))
            rows.append((pattern, count, {what: sorted(every[what]) for what in sorted(every)}))
            continue
        rows.append((pattern, len(varieties[usual]), {what: list(dtypes) for what, dtypes in usual}))
        rows += [
            (name, 1, {what: list(dtypes) for what, dtypes in kinds})
            for kinds, names in others.items()
            for name in names
        ]
    return rows
