"""Takes a step of torch's own elementwise optimizers again, in float32, on a few long tensors for all parameters.

An update that treats each element by itself gives the same on many parameters in a row as on one after the other. What
replay.py finds op by op and tensor by tensor is found here in some twenty operations, for what torch computes itself.

Known limitations: none of it for an optimizer that anything else might act on inside its step, hooks or a closure, and
none for the first step, which makes the state: there the ops are followed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import torch_private as private
from ..dtypes import LOW
from ..operands import any_low
from ..process.ledger import Ledger
from . import samples
from .kept import Numbers, columns, rows, shares

ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in "SGD Adam AdamW NAdam RAdam Adamax RMSprop Adagrad Adadelta Rprop ASGD".split()
)
STATELESS = frozenset({torch.optim.SGD})
"""They may keep nothing for a parameter."""
NUMBERS = frozenset("step mu_product eta mu".split())
"""State that is one number for a parameter."""

OfParameter = Callable[[Tensor, Numbers], None]
"""Gets the numbers of one parameter."""
OfState = Callable[[str, Any, float, float], None]
"""Gets name and dtype of some state, how many elements of it should have moved, and how many of these did not."""


class Member(NamedTuple):
    """One parameter of a step."""

    parameter: Tensor
    state: dict[str, Any]
    elements: int
    """Of which the sample consists."""

    @property
    def stands_for(self) -> float:
        """Elements of it for each one of the sample."""
        return float(self.parameter.numel() / self.elements)


class Kind(NamedTuple):
    """What parameters have in common that are stepped on together."""

    group: int
    dtype: torch.dtype
    device: torch.device
    gradient: torch.dtype
    state: tuple[tuple[str, torch.dtype], ...]
    """Names and dtypes of what is as long as the parameter."""


class Chunk(NamedTuple):
    """Some parameters of one kind, as they were before the step, each of these flat."""

    members: list[Member]
    kind: Kind
    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    numbers: dict[str, Any]
    """State that is one number for each of them, and the same one."""


class Unusual(Exception):
    """Something is not as torch's own optimizers leave it: the ops of this step are to be followed."""


class FlatStep:
    """A step that is about to be taken: what it will read, in a few copies."""

    def __init__(self, optimizer: Any, chunks: list[Chunk]) -> None:
        self._optimizer, self._chunks = optimizer, chunks

    def measure(self, ledger: Ledger, of_parameter: OfParameter, of_state: OfState) -> None:
        """The step is over: takes it again in float32, and compares. What it is given is called at the next settle."""
        chunks, self._chunks = self._chunks, []
        while chunks:  # what each of them holds is let go of before the next
            chunk = chunks.pop()
            twin, exact = self._again(chunk)
            _compare_parameters(ledger, chunk, exact, of_parameter)
            for name, before in chunk.state.items():
                _compare_state(ledger, chunk, name, before, twin[name], of_state)

    def _again(self, chunk: Chunk) -> tuple[dict[str, Any], Tensor]:
        """The state and the parameters that float32 makes of a chunk."""
        optimizer = self._optimizer
        exact = _widened(chunk.parameter)
        exact.grad = _widened(chunk.gradient)
        state = {name: _widened(value) for name, value in chunk.state.items()} | chunk.numbers
        group = {**optimizer.param_groups[chunk.kind.group], "params": [exact], "foreach": False, "fused": False}
        # Made without its constructor, and stepped without its hooks: they would tell of it.
        twin = object.__new__(type(optimizer))
        twin.__dict__.update(vars(optimizer), param_groups=[group], state=defaultdict(dict, {exact: state}))
        private.unhooked_step(type(optimizer))(twin)
        return twin.state[exact], exact


def _compare_parameters(ledger: Ledger, chunk: Chunk, exact: Tensor, use: OfParameter) -> None:
    after = _after([one.parameter for one in chunk.members], chunk.parameter)
    if after is None:
        return

    def read(values: list[float]) -> None:
        for one, numbers in zip(chunk.members, rows(values, [one.stands_for for one in chunk.members]), strict=True):
            use(one.parameter, numbers)

    ledger.defer(columns(exact, _widened(chunk.parameter), after, [one.elements for one in chunk.members]), read)


def _compare_state(ledger: Ledger, chunk: Chunk, name: str, before: Tensor, exact: Tensor, use: OfState) -> None:
    """Of state nobody asks whose it is: where each element stands for as many, one sum is that of all."""
    after = _after([one.state.get(name) for one in chunk.members], before)
    if after is None:
        return
    stand_for = {one.stands_for for one in chunk.members}
    sizes = [one.elements for one in chunk.members] if len(stand_for) > 1 else [before.numel()]

    def read(values: list[float]) -> None:
        for index, should in enumerate(values[: len(sizes)]):
            of = chunk.members[index].stands_for
            use(name, before.dtype, of * should, of * (should - values[len(sizes) + index]))

    ledger.defer(shares(exact, _widened(before), after, sizes), read)


def _after(held: list[Any], before: Tensor) -> Tensor | None:
    """What these hold by now; None where nothing can be lost of it, or it is not what it was."""
    if before.dtype not in LOW or not all(isinstance(t, Tensor) and t.dtype is before.dtype for t in held):
        return None
    after = _flat(held)
    return after if after.numel() == before.numel() else None  # else resized since


def flat_step(optimizer: Any) -> FlatStep | None:
    """What the step that is about to be taken will read; None where its ops are to be followed."""
    if type(optimizer) not in ELEMENTWISE or private.acted_on_by_hooks(optimizer):
        return None
    try:
        if not _keeps_low(optimizer):
            return FlatStep(optimizer, [])
        by_kind: dict[Kind, list[Member]] = {}
        for kind, member in _members(optimizer):
            if kind.dtype in LOW or any(dtype in LOW for _, dtype in kind.state):
                by_kind.setdefault(kind, []).append(member)
        return FlatStep(optimizer, [chunk for kind, members in by_kind.items() for chunk in _chunks(kind, members)])
    except Unusual:
        return None


def _keeps_low(optimizer: Any) -> bool:
    """Whether there is anything in it that an update could be lost of."""
    if any(parameter.dtype in LOW for group in optimizer.param_groups for parameter in group["params"]):
        return True
    return any(any_low(state.values()) for state in optimizer.state.values())


def _members(optimizer: Any) -> Iterator[tuple[Kind, Member]]:
    """Every parameter that the step will move."""
    if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
        raise Unusual
    seen: set[tuple[int, int]] = set()
    limit = samples.limit()
    for index, group in enumerate(optimizer.param_groups):
        given = [value for key, value in group.items() if key != "params"]
        if any(isinstance(value, Tensor) for value in given) or group.get("differentiable") or group.get("capturable"):
            raise Unusual
        keeps_nothing = type(optimizer) in STATELESS and not group["momentum"]
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = optimizer.state.get(parameter) or {}
            place = private.storage_address(parameter), parameter.storage_offset()
            if place in seen or not (state or keeps_nothing):
                raise Unusual
            seen.add(place)
            own = _own(parameter, gradient, {} if keeps_nothing else state)
            elements = parameter.numel()
            if elements > limit:
                elements = len(_sample([parameter, gradient, *(state[name] for name, _ in own)])[0])
            kind = Kind(index, parameter.dtype, parameter.device, gradient.dtype, own)
            if elements:
                yield kind, Member(parameter, state, elements)


def _own(parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> tuple[tuple[str, torch.dtype], ...]:
    """Names and dtypes of the state that is as long as its parameter, all of it plain."""
    if type(parameter) not in private.PLAIN or type(gradient) is not Tensor or gradient.layout is not torch.strided:
        raise Unusual
    if parameter.is_complex():
        raise Unusual
    found = []
    for name, value in state.items():
        if name in NUMBERS:
            if isinstance(value, Tensor) and (value.dtype in LOW or value.device.type != "cpu" or value.numel() != 1):
                raise Unusual
        elif value is not None:
            if type(value) is not Tensor or value.shape != parameter.shape:
                raise Unusual
            found.append((name, value.dtype))
    return tuple(found)


def _chunks(kind: Kind, members: list[Member]) -> Iterator[Chunk]:
    numbers = _numbers(members)
    for batch in samples.batches(one.elements for one in members):
        mine = [members[index] for index in batch]
        state = {name: _flat([one.state[name] for one in mine]) for name, _ in kind.state}
        gradient = _flat([one.parameter.grad for one in mine])
        fresh = {name: value.clone() if isinstance(value, Tensor) else value for name, value in numbers.items()}
        yield Chunk(mine, kind, _flat([one.parameter for one in mine]), gradient, state, fresh)


def _numbers(members: list[Member]) -> dict[str, Any]:
    """The state that is one number for each of them, where it is the same for all."""
    found = {name: value for name, value in members[0].state.items() if name in NUMBERS or value is None}
    for name, value in found.items():
        others = [one.state.get(name) for one in members]
        if isinstance(value, Tensor):
            together = private.flattened([other for other in others if isinstance(other, Tensor)])
            alike = together.numel() == len(members) and bool((together == together[0]).all())
        else:
            alike = all(type(other) is type(value) and other == value for other in others)
        if not alike:
            raise Unusual
    return found


def _flat(tensors: list[Any]) -> Tensor:
    """All of their elements, of long ones a sample."""
    limit = samples.limit()
    return private.flattened([t if t.numel() <= limit else _sample([t])[0] for t in tensors])


def _sample(tensors: list[Tensor]) -> list[Tensor]:
    """Every so many elements of tensors that lie alike in memory, without gaps."""
    first = tensors[0]
    step = samples.stride(first.numel())
    for tensor in tensors:
        if tensor.stride() != first.stride() or tensor.shape != first.shape or not _is_dense(tensor):
            raise Unusual
    count = -(-first.numel() // step)
    return [torch.as_strided(tensor.detach(), (count,), (step,), tensor.storage_offset()) for tensor in tensors]


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill their stretch of memory, each once."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.is_contiguous() or (last + 1 == tensor.numel() and 0 not in tensor.stride())


def _widened(tensor: Tensor) -> Tensor:
    """A copy in which every step counts."""
    return tensor.to(torch.float32 if tensor.dtype in LOW else tensor.dtype, copy=True)
