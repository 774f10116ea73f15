"""Each operation of the code under check, as a value, told to the detectors that asked for its name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.static.language.values import DType, Opaque, Spot, Tensor, Value, unknown

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


class Op(NamedTuple):
    """`torch.<name>(*operands)` gave `result`; an operator has the name of its function, `x * y` is "mul".

    In place (`x.add_(y)` is "add_") the result is the tensor as it is afterwards, under its old name.
    """

    torch: Torch
    name: str
    operands: list[Value]
    kwargs: dict[str, Value]
    inputs: list[Value]
    """The operands and what was given by name, with the items of lists among them."""
    result: Value
    node: Any

    @property
    def first(self) -> Value:
        """The tensor that it works on; where its first operand is none, the next that is one."""
        front = self.operands[0] if self.operands else unknown()
        return front if isinstance(front, Tensor) else next((v for v in self.operands if isinstance(v, Tensor)), front)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it computes with."""
        return [value for value in self.inputs if isinstance(value, Tensor)]

    @property
    def plain(self) -> list[Value]:
        """The numbers that it computes with, and whatever else is neither a tensor nor may be one."""
        return [value for value in self.inputs if not isinstance(value, (Tensor, Opaque))]

    @property
    def dtype_given(self) -> bool:
        """Whether the caller said in which dtype it is computed."""
        return "dtype" in self.kwargs or any(isinstance(value, DType) for value in self.operands[1:])

    @property
    def spot(self) -> Spot:
        return self.torch.spot(self.node)

    @property
    def low(self) -> bool:
        """Whether what comes out is certainly low."""
        return isinstance(self.result, Tensor) and self.result.low

    def operand(self, place: int) -> Value:
        """What was given at this place, something unknown where a call lacks it."""
        return self.operands[place] if len(self.operands) > place else unknown()

    def argument(self, place: int, name: str) -> Value | None:
        """What was given at this place among the operands or under this name."""
        return self.operands[place] if len(self.operands) > place else self.kwargs.get(name)


class Update(NamedTuple):
    """`target` was written from itself and from what was `added`: `x.add_(y)`, `x += y`, `x = d * x + y`, `x.copy_(y)`.

    `how` is the operation, without its underscore; `kept`: it is an attribute or an item, not a name of a function.
    """

    torch: Torch
    target: Value
    added: list[Value]
    node: Any
    how: str
    kept: bool


Act = Callable[[Op], None]


class Bus:
    """Who wants to hear of which operation, and of the end of a file."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Act]] = defaultdict(list)
        self.updates: list[Callable[[Update], None]] = []
        self.ends: list[Callable[[Torch], None]] = []

    def on(self, names: str | Iterable[str], act: Act, low_only: bool = True) -> None:
        """Has `act` called after each operation of these names; `low_only`: where its result is low."""
        heard = (lambda op: act(op) if op.low else None) if low_only else act
        for name in names.split() if isinstance(names, str) else names:
            self.asked[name].append(heard)

    def on_update(self, act: Callable[[Update], None]) -> None:
        """Has `act` called whenever a tensor or a parameter is written from itself."""
        self.updates.append(act)

    def on_end(self, act: Callable[[Torch], None]) -> None:
        """Has `act` called once the whole file has been run."""
        self.ends.append(act)

    def finish(self, torch: Torch) -> None:
        for act in self.ends:
            act(torch)

    def tell(self, op: Op) -> None:
        for act in self.asked.get(op.name, ()):
            act(op)

    def tell_update(self, update: Update) -> None:
        for act in self.updates:
            act(update)
