"""What a collective makes of companions: sums and pieces of all ranks' own, which these show each other in files.

A second collective would come between those of the program. Each rank of a group on this node writes the companions of
what it gives, with the number of the collective in its name, and reads those of the others: they take part in the same
collectives in the same order. A rank that does not come in time is not waited for again.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from .companions import floats

PATIENCE = 20.0
"""Seconds that other ranks are waited for."""
POLL = 0.0005
SUM, AVERAGE, MINIMUM, MAXIMUM = 0, 1, 3, 4
"""Ways to reduce, by their numbers in torch."""


class Shape(NamedTuple):
    """Where a collective has what."""

    given: int
    made: int | None
    """None where it gives back new tensors."""
    group: int
    op: int | None = None
    """How it reduces; None where it moves numbers as they are."""
    scatters: bool = False
    """Each rank gets its part only."""
    root: int | None = None
    """Whose numbers all get; of a reduction, who gets them."""


COLLECTIVES: dict[str, Shape] = {
    "c10d::allreduce_": Shape(0, 0, 1, op=2),
    "c10d::allreduce_coalesced_": Shape(0, 0, 1, op=2),
    "c10d::reduce_": Shape(0, 0, 1, op=2, root=3),
    "c10d::broadcast_": Shape(0, 0, 1, root=2),
    **dict.fromkeys(
        ("c10d::_allgather_base_", "c10d::allgather_", "c10d::allgather_into_tensor_coalesced_"), Shape(1, 0, 2)
    ),
    **dict.fromkeys(
        ("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_", "c10d::reduce_scatter_tensor_coalesced_"),
        Shape(1, 0, 2, op=3, scatters=True),
    ),
    "_c10d_functional::all_reduce": Shape(0, None, 2, op=1),
    "_c10d_functional::all_reduce_": Shape(0, 0, 2, op=1),
    "_c10d_functional::broadcast": Shape(0, None, 2, root=1),
    "_c10d_functional::all_gather_into_tensor": Shape(0, None, 2),
    "_c10d_functional::reduce_scatter_tensor": Shape(0, None, 3, op=1, scatters=True),
}
"""Those that are followed."""


class Given(NamedTuple):
    """What this rank gives."""

    shape: Shape
    lineages: list[list[Tensor]]
    """Of each kind of companions those of the tensors."""
    partial: bool


class Exchange:
    """The files of one run."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) / "exact" if folder else None
        self._counts: Counter[str] = Counter()
        self._step = self._tries = 0
        self.open = True

    def begins(self, step: int) -> None:
        """The exact step, or another try."""
        self._step, self._tries = step, self._tries + 1
        self._counts.clear()

    def run(self, given: Given, args: Any, outs: list[Tensor]) -> tuple[list[list[Tensor]], bool] | None:
        """For each kind of companions what the collective gives this rank, and whether some rank's was partial.

        None where the others cannot be asked.
        """
        group: Any = private.process_group(args[given.shape.group])
        if any(one.is_complex() for one in given.lineages[0]):
            return None
        sizes = [[one.numel() for one in tensors] for tensors in given.lineages]
        mark = torch.tensor([float(given.partial)], dtype=torch.float64)
        mine = torch.cat([mark, *(one.reshape(-1).cpu() for tensors in given.lineages for one in tensors)])
        every = [mine] if group.size() == 1 else self._shown(group, mine)
        if every is None:
            return None
        at, made = 1, []
        for numbers in sizes:
            by_rank = [theirs[at : at + sum(numbers)].split(numbers) for theirs in every]
            at += sum(numbers)
            one = _made(given.shape, by_rank, args, group.rank(), outs)
            if one is None:
                return None
            made.append(one)
        return made, any(bool(theirs[0]) for theirs in every)

    def _shown(self, group: Any, mine: Tensor) -> list[Tensor] | None:
        """The numbers of all ranks of the group."""
        if self._folder is None or not self.open or not _on_one_node():
            return None
        self._folder.mkdir(exist_ok=True)
        number = self._counts[group.group_name]
        self._counts[group.group_name] += 1
        name = f"{self._step}-{self._tries}-{_plain(group.group_name)}"
        if not _written(self._folder / f"{name}-{number}-{group.rank()}", mine):
            self.open = False
            return None
        until = time.monotonic() + PATIENCE
        found = []
        for rank in range(group.size()):
            other = self._folder / f"{name}-{number}-{rank}"
            while not other.exists():
                if time.monotonic() > until:
                    self.open = False
                    return None
                time.sleep(POLL)
            if other.stat().st_size != 8 * mine.numel():
                return None
            theirs = torch.from_file(str(other), shared=False, size=mine.numel(), dtype=torch.float64)
            found.append(mine if rank == group.rank() else theirs.clone())
        if number:  # whoever shows its numbers of this one has read those of the one before
            (self._folder / f"{name}-{number - 1}-{group.rank()}").unlink(missing_ok=True)
        return found


def _written(path: Path, numbers: Tensor) -> bool:
    """Writes them whole, or nothing; not through mapped memory, where a full disk would end the process."""
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write((ctypes.c_char * (8 * numbers.numel())).from_address(numbers.data_ptr()))
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        return False
    return True


def collective(name: str, args: Any, kinds: Iterable[Callable[[Tensor], Tensor]], partial: bool) -> Given:
    """What a collective is given, in each kind of companions."""
    shape = COLLECTIVES[name]
    tensors = list(floats([args[shape.given]]))
    return Given(shape, [[kind(one) for one in tensors] for kind in kinds], partial)


def arrives_late(shape: Shape) -> bool:
    """Whether a backend may copy the result to its place when it is waited for, as gloo does."""
    return shape.scatters and shape.made is not None


def written(shape: Shape, args: Any, out: Any) -> list[Tensor]:
    """The tensors that a collective writes to, or makes."""
    return list(floats([out if shape.made is None else args[shape.made]]))


def _made(shape: Shape, by_rank: list[Any], args: Any, rank: int, outs: list[Tensor]) -> list[Tensor] | None:
    """What lies then in the tensors that it writes to, one after the other; `by_rank` is each rank's, flat."""
    together = list(zip(*by_rank, strict=True))
    if shape.op is None:
        if shape.root is not None:
            found = list(by_rank[args[shape.root]])
        elif len(together) == len(outs):
            found = [torch.cat(parts) for parts in together]
        else:
            found = [part for parts in together for part in parts]
    else:
        reduced = [_reduced(private.reduction(args[shape.op]), torch.stack(parts)) for parts in together]
        found = [one for one in reduced if one is not None]
        if len(found) < len(reduced):
            return None
        if shape.scatters:
            whole = len(found) == len(outs)
            found = [one.chunk(len(by_rank))[rank] for one in found] if whole else found[rank :: len(by_rank)]
        elif shape.root is not None and rank != args[shape.root]:
            found = list(by_rank[rank])
    return [one.reshape(out.shape).to(out.device) for one, out in zip(found, outs, strict=True)]


def _reduced(op: int, ranks: Tensor) -> Tensor | None:
    if op == SUM:
        return ranks.sum(0)
    if op == AVERAGE:
        return ranks.mean(0)
    if op in (MINIMUM, MAXIMUM):
        return ranks.amin(0) if op == MINIMUM else ranks.amax(0)
    return None


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _on_one_node() -> bool:
    """Whether all ranks are on this node, as far as their launcher says."""
    world = os.environ.get("WORLD_SIZE", "")
    return os.environ.get("LOCAL_WORLD_SIZE", world) == world
