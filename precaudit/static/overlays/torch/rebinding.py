"""Values that are updated from themselves: `x += y`, `x = x + y`, lists rebuilt from their older items."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.language import expressions
from precaudit.static.language.values import (
    NONE,
    Choice,
    Param,
    Tensor,
    Value,
    choice,
)
from precaudit.static.overlays.events import Op
from precaudit.static.overlays.torch import operands, ops, scaling, updates

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def augmented(run: Run, op: str, target: Value, value: Value, node: Any) -> Value:
    """`target op= value`."""
    run.training.updated |= "gradient" in operands.marks_of([operands.as_tensor(run, value)])
    attribute = outlives_its_loop(run, node.target)
    short = {"Add": "add", "Subtract": "sub", "Multiply": "mul", "Divide": "div"}.get(op, op)
    tensor = operands.as_tensor(run, target)
    if isinstance(target, Param):
        updates.update(run, target, [value], node, short, attribute)
        return target
    if isinstance(tensor, Tensor):
        if "gradient" in tensor.marks:
            scaling.gradient_written(run, node)
        updates.update(run, tensor, [value], node, short, attribute)
        result = ops.binary(run, op, tensor, value, node)
        decayed = {"decayed"} if op == "Multiply" else set()
        notes = result.notes if isinstance(result, Tensor) else tensor.notes
        return replace(tensor, marks=tensor.marks | operands.marks_of([result]) | decayed, notes=notes)
    result = expressions.binary(run.interpreter, op, target, value, node)
    return updates.begun(run, target, result) if op == "Add" and isinstance(result, Tensor) else result


def rebinding(run: Run, target: Any, expression: Any, value: Value) -> Value:
    """`x = f(x)`: an update of x from itself, when x is a term on the right or a part of it: one storage."""
    tensor = operands.as_tensor(run, value)
    if not isinstance(tensor, Tensor) or not tensor.low:
        return value
    if isinstance(expression, cst.IfExp):
        sides = (expression.body, expression.orelse)
        expression = next((s for s in sides if any(_same_expression(t, target) for t in _terms(s))), sides[0])
    terms = _terms(expression)
    mine = [t for t in terms if _same_expression(t, target)]
    if not mine and isinstance(target, cst.Attribute) and tensor.zero_dim:
        held = run.interpreter.eval(target)
        if held == NONE:
            return updates.begun(run, held, tensor)
    if mine and len(terms) > 1:
        others: list[Value] | None = [run.interpreter.eval(t) for t in terms if t not in mine]
    elif mine or len(tensor.parts) < 2 or isinstance(target, cst.Name):
        return value
    else:
        others = None
    return _updated_from_itself(run, target, expression, value, tensor, others)


def _updated_from_itself(
    run: Run, target: Any, expression: Any, value: Value, tensor: Tensor, others: list[Value] | None
) -> Value:
    """The new value where the old one is a term beside these others; a part of the new one where they are None."""
    held = _present(run.interpreter.eval(target))
    before = operands.as_tensor(run, held)
    mine = others is not None
    if mine and _adds(expression):
        tensor = updates.begun(run, before, tensor)
    if not isinstance(before, Tensor) or not before.low:
        return tensor
    if others is None and not any(part is before for part in tensor.parts):
        return value
    added = others if others is not None else _without(tensor.parts, before)
    if run.in_forward() and isinstance(target, cst.Name) and run.loops() and _recurs(expression, target):
        if _fed_by_its_loop(run, expression, target):
            run.bus.tell(Op(run, "recurrence", [tensor], {}, [tensor], tensor, expression))
        return value
    how = "lerp" if mine and _decays(expression, target) else "add" if not mine or _adds(expression) else "mul"
    buffer = isinstance(held, Param) and held.store.get("kind") == "buffer"
    updates.update(run, held if buffer else before, added, expression, how, outlives_its_loop(run, target))
    return value if buffer else _in_its_storage(before, tensor, value)


def _without(parts: Sequence[Tensor], one: Tensor) -> list[Value]:
    return [part for part in parts if part is not one]


def _in_its_storage(before: Tensor, tensor: Tensor, value: Value) -> Value:
    """The new value as what was made, or is a weight, long ago; any other as it is."""
    kept = before.marks & {"created", "weights"}
    if not kept:
        return value
    return replace(tensor, spot=before.spot, origin=before.origin, loops=before.loops, marks=tensor.marks | kept)


def _present(value: Value) -> Value:
    """A value that may be None, where it is not."""
    return choice(o for o in value.options if o != NONE) if isinstance(value, Choice) else value


def rebuilding(run: Run, expression: Any, names: frozenset[str], value: Value) -> Value:
    """An item of a list that is rebuilt from its older self."""
    for term in _terms(expression):
        if isinstance(term, cst.Name) and term.value in names:
            before = operands.as_tensor(run, run.interpreter.eval(term))
            if isinstance(before, Tensor) and before.low and before.marks & {"created", "weights"}:
                return rebinding(run, term, expression, value)
    return value


def outlives_its_loop(run: Run, target: Any) -> bool:
    """Whether a target is kept somewhere: an attribute, an item of a container; not a stretch of a local tensor."""
    while isinstance(target, cst.Call) and isinstance(target.func, cst.Attribute):
        target = target.func.value  # the tensor that a view is of
    if isinstance(target, cst.Attribute):
        if target.attr.value in ("T", "mT", "data", "real"):
            return outlives_its_loop(run, target.value)
        return True
    if isinstance(target, cst.Subscript):
        held = run.interpreter.eval(target.value)
        return outlives_its_loop(run, target.value) if isinstance(held, (Tensor, Param)) else True
    return False


def _adds(node: Any) -> bool:
    """Whether a sum stands in it: a product of equals keeps its relative precision."""
    if not isinstance(node, cst.BinaryOperation):
        return False
    return isinstance(node.operator, (cst.Add, cst.Subtract)) or _adds(node.left) or _adds(node.right)


def _terms(node: Any) -> list[Any]:
    """The operands of nested sums and products, and the arguments of lerp."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, (cst.Add, cst.Multiply, cst.Subtract)):
        return _terms(node.left) + _terms(node.right)
    return [node]


def _decays(node: Any, target: Any) -> bool:
    """Whether a sum has `decay * target` in it."""
    if not isinstance(node, cst.BinaryOperation):
        return False
    if isinstance(node.operator, (cst.Add, cst.Subtract)):
        return any(_decays(side, target) or _is_product_of(side, target) for side in (node.left, node.right))
    return False


def _is_product_of(node: Any, target: Any) -> bool:
    product = isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Multiply)
    return product and any(_same_expression(term, target) for term in _terms(node))


def _recurs(node: Any, target: Any) -> bool:
    """Whether an expression is `decay * target + something`: a recurrence, not a residual sum."""
    if not isinstance(node, cst.BinaryOperation) or not isinstance(node.operator, cst.Add):
        return False
    if any(isinstance(term, cst.Call) for term in _terms(node)):
        return False
    return any(_is_product_of(side, target) for side in (node.left, node.right))


def _fed_by_its_loop(run: Run, node: Any, target: Any) -> bool:
    """Whether each turn of this function's own loop adds another piece of the input: steps of time, not layers."""
    loops = run.interpreter.frames[-1].loops
    new = _bound_in(run, loops[-1].node, target) if loops else set()
    for term in _terms(node) if new else ():
        if not _same_expression(term, target) and not new.isdisjoint(_words(run, term)):
            value = operands.as_tensor(run, run.interpreter.eval(term))
            if not isinstance(value, Tensor) or "weights" not in value.marks:
                return True
    return False


def _bound_in(run: Run, loop: Any, target: Any) -> set[str]:
    """The names that a loop binds, and those that it assigns from them and not from the target."""
    if not isinstance(loop, (cst.For, cst.While)):
        return set()
    found = set(_words(run, loop.target)) if isinstance(loop, cst.For) else set()
    for line in loop.body.body:
        for small in line.body if isinstance(line, cst.SimpleStatementLine) else ():
            if isinstance(small, cst.AugAssign) and isinstance(loop, cst.While):
                found |= set(_words(run, small.target))
            elif isinstance(small, cst.Assign) and not _same_expression(small.targets[0].target, target):
                read = set(_words(run, small.value))
                if read & found and target.value not in read:
                    found |= set(_words(run, small.targets[0].target))
    return found


def _words(run: Run, node: Any) -> list[str]:
    return re.findall(r"\w+", run.interpreter.text(node))


def _same_expression(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, cst.Name):
        return bool(one.value == other.value)
    if isinstance(one, cst.Attribute):
        return bool(one.attr.value == other.attr.value) and _same_expression(one.value, other.value)
    if isinstance(one, cst.Subscript):
        return _same_expression(one.value, other.value) and bool(one.deep_equals(other))
    return False
