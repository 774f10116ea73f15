"""Walks the autograd graph once, as each backward begins: leaves, dtypes by role, what lies between loss and model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.vocabulary import Site
from .. import torch_private as private
from ..dtypes import LOW
from ..events import BackwardBegan, BackwardEnded, BackwardNested, Bus
from ..sites import user_site
from .steps import Steps

MATMUL_NODES = frozenset(
    "MmBackward0 AddmmBackward0 BmmBackward0 BaddbmmBackward0 MvBackward0 DotBackward0 "
    "ConvolutionBackward0 MkldnnConvolutionBackward0 LinearBackward0 "
    "ScaledDotProductFlashAttentionBackward0 ScaledDotProductEfficientAttentionBackward0 "
    "ScaledDotProductFlashAttentionForCpuBackward0 ScaledDotProductCudnnAttentionBackward0 "
    "LinearFunctionForZeroStage3Backward MatMul4BitBackward MatMul8bitLtBackward "
    "LinearNF4Backward".split()
)
SOFTMAX_NODES = frozenset({"SoftmaxBackward0", "LogSoftmaxBackward0", "LogsumexpBackward0"})
NORM_NODES = frozenset(
    "NativeLayerNormBackward0 NativeGroupNormBackward0 NativeBatchNormBackward0 "
    "CudnnBatchNormBackward0 FusedRmsNormBackward0".split()
)
"""Library kernels: whatever goes in, they compute their statistics in float32 (float64 for float64)."""
TAKING = (
    "MmBackward", "AddmmBackward", "BmmBackward", "BaddbmmBackward", "MvBackward", "LinearBackward",
    "ConvolutionBackward", "MkldnnConvolutionBackward", "SelectBackward", "SliceBackward", "IndexBackward",
    "IndexSelectBackward", "GatherBackward", "SplitBackward", "UnbindBackward", "NarrowBackward",
)  # fmt: skip
"""Beginnings of the nodes whose one-element results are outputs of a model or parts of them; a loss is reduced."""
REDUCING = ("SumBackward", "MeanBackward", "BinaryCrossEntropyBackward", "KlDivBackward")
ROOTS = frozenset({"RsqrtBackward0", "SqrtBackward0"})
CASTS = "ToCopyBackward0"
LEAF = "AccumulateGrad"
BEGINNING = (MATMUL_NODES - {"DotBackward0"}) | NORM_NODES | SOFTMAX_NODES
"""Below these nodes lies a model; a dot product, too, is a way to weigh the terms of a loss."""
COMPUTING = MATMUL_NODES | SOFTMAX_NODES | NORM_NODES | ROOTS | {private.COMPILED_NODE}
"""The nodes that are more than a value on the way."""


Path = tuple[int, Any]
"""One-element nodes from the root on: the sequence number of the last, and the path that led to it."""


class Walk:
    """What one walk of the graph from its roots found. Counts are by dtype; bytes are of forward values."""

    __slots__ = (
        "activations", "casts_of_leaves", "compiled", "leaves", "losses", "low_logsumexp", "matmuls", "norms",
        "outputs", "scalars", "softmaxes", "unread",
    )  # fmt: skip

    def __init__(self) -> None:
        self.leaves: dict[int, Tensor] = {}
        self.activations: dict[Any, list[int]] = {}
        self.matmuls: dict[Any, int] = {}
        self.softmaxes: dict[Any, int] = {}
        self.norms: dict[Any, int] = {}
        self.low_logsumexp = False
        self.casts_of_leaves: dict[int, Any] = {}
        """Leaf -> the dtype the forward pass read it in."""
        self.compiled: list[int] = []
        """AOT ids of the compiled regions it goes through."""
        self.unread: set[int] = set()
        """Leaves that enter a compiled region: in which dtype they are read inside of it does not show here."""
        self.scalars: list[tuple[Any, int]] = []
        """One-element values between the root and the first larger one: (dtype, sequence number), the loss first."""
        self.outputs: set[int] = set()
        """Those of them that no loss is part of: what a model gives for one sample, and what is computed from it."""
        self.losses: set[int] = set()
        """Those that a loss is part of."""

    def at_leaf(self, node: Any) -> None:
        """The end of a path: a leaf and the dtype that it was read in."""
        leaf = node.variable
        self.leaves[id(leaf)] = leaf
        for meta in private.output_metadata(node):
            # FSDP1 has put the float32 shard back by now; the node still knows what the forward pass read.
            if meta.dtype is not leaf.dtype:
                self.casts_of_leaves.setdefault(id(leaf), meta.dtype)

    def values_of(self, node: Any) -> tuple[Any, bool]:
        """Counts the forward values that a node stands for; the dtype of the last, and whether all have one element."""
        dtype, single = None, True
        for meta in private.output_metadata(node):
            dtype = meta.dtype
            size = 0 if meta.is_nested_tensor else int(math.prod(meta.shape))  # how long its rows are, it does not say
            tally = self.activations.get(dtype)
            if tally is None:
                tally = self.activations[dtype] = [0, 0]
            tally[0] += 1
            tally[1] += size * dtype.itemsize
            single &= size == 1
        return dtype, single

    def follow_scalar(self, name: str, number: int, dtype: Any, path: Path) -> Path | None:
        """One more one-element value on the way from the root; the path goes on unless a model's output is reached."""
        path = (number, path)
        self.scalars.append((dtype, number))
        if name.startswith(TAKING):
            _settle(path, self.outputs)
            return None
        if name.startswith(REDUCING) or "Loss" in name:
            _settle(path, self.losses)
        return path

    def computes(self, name: str, node: Any, dtype: Any) -> None:
        """What kind of computation a node is."""
        if name in MATMUL_NODES:
            self.matmuls[dtype] = self.matmuls.get(dtype, 0) + 1
        elif name in SOFTMAX_NODES:
            self.softmaxes[dtype] = self.softmaxes.get(dtype, 0) + 1
            self.low_logsumexp |= name == "LogsumexpBackward0" and dtype in LOW
        elif name in NORM_NODES or (name in ROOTS and dtype not in LOW and _of_squares(node)):
            self.norms[dtype] = self.norms.get(dtype, 0) + 1
        elif name == private.COMPILED_NODE:
            self.compiled.append(private.region_of(node))

    def reads_leaf(self, name: str, leaf: Tensor, dtype: Any) -> None:
        """A node takes a leaf: a cast of it, or a compiled region that hides how it is read."""
        if name == CASTS:
            self.casts_of_leaves[id(leaf)] = dtype
        elif name == private.COMPILED_NODE:
            self.unread.add(id(leaf))

    def add(self, part: Walk) -> None:
        """Counts what a checkpoint computed again, too. The loss is not in there."""
        for dtype, (count, size) in part.activations.items():
            tally = self.activations.setdefault(dtype, [0, 0])
            tally[0] += count
            tally[1] += size
        for mine, theirs in (
            (self.matmuls, part.matmuls),
            (self.softmaxes, part.softmaxes),
            (self.norms, part.norms),
        ):
            for dtype, count in theirs.items():
                mine[dtype] = mine.get(dtype, 0) + count
        self.leaves |= part.leaves
        self.casts_of_leaves |= part.casts_of_leaves
        self.unread |= part.unread
        self.compiled += part.compiled


def walk(roots: Iterable[Tensor], node_budget: int = 200_000) -> Walk:
    """Walks the autograd graph once, from the roots to the leaves."""
    found = Walk()
    seen: set[Any] = set()
    path: Path | None = (-1, None)
    stack = [(root.grad_fn, path) for root in roots if root.grad_fn is not None]
    for root in roots:
        if root.grad_fn is None and root.requires_grad:
            found.leaves[id(root)] = root
    while stack and len(seen) < node_budget:
        node, path = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        if name == LEAF:
            found.at_leaf(node)
            continue
        dtype, single = found.values_of(node)
        if path is not None and not single:
            _settle(path, found.losses)
            path = None
        if path is not None and dtype is not None:
            path = found.follow_scalar(name, private.sequence_number(node), dtype, path)
        if name in COMPUTING:
            found.computes(name, node, dtype)
        reads = name == CASTS or name == private.COMPILED_NODE
        for following, _ in node.next_functions:
            if following is None:
                continue
            if reads and type(following).__name__ == LEAF:
                found.reads_leaf(name, following.variable, dtype)
            if following not in seen:
                stack.append((following, path))
    found.outputs -= found.losses
    return found


def head(roots: Iterable[Tensor], node_budget: int = 4096) -> set[int]:
    """The sequence numbers of the nodes between the roots and where the model begins, the nodes there included.

    It begins at a matmul, a softmax, a library's normalisation, and at any Function that is not torch's own.
    """
    found: set[int] = set()
    stack = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen: set[Any] = set(stack)
    while stack and len(seen) < node_budget:
        node = stack.pop()
        found.add(private.sequence_number(node))
        name = type(node).__name__
        if name in BEGINNING or not name[-1].isdigit():
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found


def _settle(path: Path | None, into: set[int]) -> None:
    """Adds the numbers of a path; those before one that is known are known."""
    while path is not None and path[0] not in into:
        into.add(path[0])
        path = path[1]


def _of_squares(node: Any) -> bool:
    """Whether this is the root of a mean of squares or of a variance: a normalisation written out by hand."""
    for _ in range(3):
        node = node.next_functions[0][0] if node.next_functions else None
        name = type(node).__name__
        if name.startswith("Var"):
            return True
        if name.startswith("Mean"):
            square = type(node.next_functions[0][0]).__name__
            return square.startswith(("Pow", "Mul", "Square"))
        if not name.startswith(("Add", "Clamp")):
            return False
    return False


def loss_factor(root: Tensor, gradient: Any) -> tuple[float, list[Tensor]] | None:
    """By how much the program itself multiplied the loss before backward; None where that cannot be told.

    Follows one-element multiplications and divisions from the root, and the gradient passed in. What it was divided by
    on a device, as a Trainer's number of tokens, nobody has read: those tensors stand beside the factor.
    """
    factor, divisors = 1.0, list[Tensor]()
    if isinstance(gradient, Tensor) and not private.begins_with_ones():
        if gradient.numel() != 1 or gradient.device.type != "cpu":
            return None
        factor = float(gradient.item())
    node = root.grad_fn
    for _ in range(16):
        name = type(node).__name__
        if name == "MulBackward0":
            number = private.saved_factor(node)
            if number is None or isinstance(number, Tensor):
                return None
            factor *= number
        elif name == "DivBackward0":
            number = private.saved_factor(node)
            if isinstance(number, Tensor):
                divisors.append(number)
            elif not number:
                return None
            else:
                factor /= number
        elif name not in ("ToCopyBackward0", "ViewBackward0", "ReshapeAliasBackward0"):
            break
        following = [n for n, _ in node.next_functions if n is not None]
        if len(following) != 1:
            break
        node = following[0]
    return factor, divisors


class GraphWalked(NamedTuple):
    """A backward is about to begin, and this is its graph."""

    roots: list[Tensor]
    gradient: Any
    """What the caller passed for the first root."""
    found: Walk
    trains: bool
    """Training goes through it; otherwise it is a penalty's, or a second derivative's."""
    differentiates: bool
    """It is autograd.grad with a graph of its own."""
    site: Site | None
    """The user's line that calls a backward that trains."""


class GraphRecomputed(NamedTuple):
    """Inside backward, a checkpoint computed its part of the forward pass again, and this is the graph of that part."""

    found: Walk
    """Its leaves are parameters alone; the checkpoint's own inputs are leaves of no other graph."""
    whole: Walk
    """All of this backward so far."""


class Graph:
    """Walks, and tells what was found."""

    def __init__(self, bus: Bus, steps: Steps) -> None:
        self._bus, self._steps = bus, steps
        self._whole = Walk()
        bus.on(BackwardBegan, self._backward_began)
        bus.on(BackwardNested, self._backward_nested)
        bus.on(BackwardEnded, self._backward_ended)

    def _backward_began(self, event: BackwardBegan) -> None:
        trains = self._steps.trains
        site = user_site() if trains else None
        found = self._whole = walk(event.roots)
        self._bus.tell(GraphWalked(event.roots, event.gradient, found, trains, self._steps.differentiates, site))

    def _backward_nested(self, event: BackwardNested) -> None:
        if self._steps.trains:
            part = walk(event.roots)
            part.leaves = {key: leaf for key, leaf in part.leaves.items() if isinstance(leaf, torch.nn.Parameter)}
            self._whole.add(part)
            self._bus.tell(GraphRecomputed(part, self._whole))

    def _backward_ended(self, event: BackwardEnded) -> None:
        """Lets go of the leaves: they are the program's."""
        self._whole = Walk()
