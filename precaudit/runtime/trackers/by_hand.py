"""Finds the steps of a loop without an Optimizer: between two backward passes its parameters got other values.

In whatever way: `p.data.add_(-lr * p.grad)`, `p -= lr * p.grad`, `p.data = …`, or `ws = [w - lr * g …]`, new leaves in
the place of the old.

Known limitations: a few elements of a few parameters are compared; a step that leaves all of them as they were goes
unseen, unless its ops are seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from .holders import Holders
from .optimizers import nbytes
from .tensors import Leaf, Tensors

LEAVES = 16
ELEMENTS = 1024


class ByHand:
    """What the last backward left, to be compared when the next one begins."""

    def __init__(self, tensors: Tensors, holders: Holders) -> None:
        self._tensors, self._holders = tensors, holders
        self.replaces = False
        """Its parameters got new memory, or others took their place: no write to them can be seen."""
        self.held: dict[Any, list[int]] = {}
        """Dtype -> count and bytes of the leaves of the last backward."""
        self._sampled: list[tuple[Leaf, Tensor]] = []
        """Some leaves, and a copy of some of their elements."""
        self._shapes: Counter[Any] = Counter()

    def remember(self, leaves: list[Tensor]) -> None:
        """A backward that trains has ended at these leaves."""
        plain = [leaf for leaf in leaves if type(leaf) in private.PLAIN and leaf.layout is torch.strided]
        chosen = plain[:: max(1, len(plain) // LEAVES)][:LEAVES]
        self._sampled = [(self._tensors.meet(leaf), _some(leaf)) for leaf in chosen]
        self._shapes = _shapes(leaves)
        self.held.clear()
        for leaf in leaves:
            tally = self.held.setdefault(leaf.dtype, [0, 0])
            tally[0] += 1
            tally[1] += nbytes(leaf)

    def stepped(self, roots: Iterable[Tensor]) -> bool:
        """Whether a step was taken since then; `roots` are those of the backward that begins."""
        if not self._sampled:
            return False
        now = {id(leaf): leaf for leaf in _leaves(roots)}
        for leaf, before in self._sampled:
            found = now.get(leaf.id)
            if found is None:  # of the other model of two
                found = self._holders.parameter(leaf.id)
            if found is None:
                found = leaf.tensor()
            if found is not None and not torch.equal(before, _some(found)):
                self.replaces |= self._tensors.of(found) is not leaf.record
                return True
        others = not any(leaf.id in now for leaf, _ in self._sampled) and _shapes(now.values()) == self._shapes
        self.replaces |= others
        return others


def _some(leaf: Tensor) -> Tensor:
    """A copy of some elements, as bytes: NaN is like itself then."""
    flat = leaf.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS].clone().view(torch.uint8)


def _shapes(leaves: Iterable[Tensor]) -> Counter[Any]:
    return Counter((tuple(leaf.shape), leaf.dtype) for leaf in leaves)


def _leaves(roots: Iterable[Tensor]) -> Iterator[Tensor]:
    """The leaves of the graph of these roots."""
    stack = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen: set[Any] = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
