"""Each operation of the code under check, as a value, told to the detectors that asked for its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from precaudit.static.language.values import DType, Opaque, Spot, Tensor, Value, unknown

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


class Op(NamedTuple):
    """`torch.<name>(*operands)` gave `result`; an operator has the name of its function, `x * y` is "mul".

    In place (`x.add_(y)` is "add_") the result is the tensor as it is afterwards, under its old name.
    """

    run: Run
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
        return self.run.spot(self.node)

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

    run: Run
    target: Value
    added: list[Value]
    node: Any
    how: str
    kept: bool


def tell(
    run: Run,
    name: str,
    operands: Sequence[Value],
    node: Any,
    result: Value | None = None,
    kwargs: Mapping[str, Value] | None = None,
) -> None:
    """Tells that something named so was called; where it gives nothing back, the result is what it worked on."""
    if name in run.bus.asked:
        held, named = list(operands), dict(kwargs or {})
        of = result if result is not None else held[0] if held else unknown()
        run.bus.tell(Op(run, name, held, named, [*held, *named.values()], of, node))
