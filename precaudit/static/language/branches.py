"""Statements that part and join paths: if, loops, try, match, return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from precaudit.static.language import objects
from precaudit.static.language.heap import Changes
from precaudit.static.language.scopes import Loop
from precaudit.static.language.values import (
    NONE,
    Choice,
    Class,
    Const,
    Value,
    choice,
    constant,
    truth,
    unknown,
)
from precaudit.static.nodes import cst

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter


def _if(run: Interpreter, node: Any) -> bool:
    test = run.eval(node.test)
    known = truth(test)
    if _is_main_guard(node.test):
        known = True
    if known is True:
        return run.body(node.body)
    if known is False:
        return _else(run, node)
    text = _condition_text(run, node.test)
    run.guards.append(text)
    try:
        return fork(run, node.test, lambda: run.body(node.body), lambda: _else(run, node), text)
    finally:
        run.guards.pop()


def _else(run: Interpreter, node: Any) -> bool:
    if node.orelse is None:
        return True
    if type(node.orelse) is cst.If:
        return run.statement(node.orelse)
    return run.body(node.orelse.body)


def _is_main_guard(test: Any) -> bool:
    return type(test) is cst.Comparison and type(test.left) is cst.Name and test.left.value == "__name__"


def _condition_text(run: Interpreter, test: Any) -> str:
    while type(test) is cst.UnaryOperation and type(test.operator) is cst.Not:
        test = test.expression
    text = run.text(test)
    return text.removesuffix(" is not None").removesuffix(" is None").removeprefix("(").removesuffix(")")


def _negated(run: Interpreter, test: Any) -> bool:
    negated = False
    while type(test) is cst.UnaryOperation and type(test.operator) is cst.Not:
        test, negated = test.expression, not negated
    return negated != (type(test) is cst.Comparison and run.text(test).endswith(" is None"))


def fork(run: Interpreter, test: Any, then: Callable[[], bool], orelse: Callable[[], bool], text: str = "") -> bool:
    """Runs both sides of an undecided branch from the same state, and joins what is left of them."""
    outcomes: list[Changes] = []
    mark = run.heap.mark()
    before = run.paths
    taken = not _negated(run, test) if text else True
    for side, follow in ((True, then), (False, orelse)):
        if text:
            wanted = side == taken
            possible = [s for s in before if ("assume", text, not wanted) not in s]
            if not possible:
                continue
            run.set_paths(s | {("assume", text, wanted)} for s in possible)
        _refine(run, test, side)
        if follow():
            outcomes.append(run.heap.changes(mark))
        run.heap.undo(mark)
    if not outcomes:
        return False
    run.heap.merge(outcomes)
    return True


def _refine(run: Interpreter, test: Any, side: bool) -> None:
    """Narrows `x` inside `if x`, `if x is not None`, `if isinstance(x, T)` when x is one of several values."""
    if type(test) is cst.UnaryOperation and type(test.operator) is cst.Not:
        _refine(run, test.expression, not side)
        return
    if type(test) is cst.BooleanOperation:
        if (type(test.operator) is cst.And) == side:
            _refine(run, test.left, side)
            _refine(run, test.right, side)
        return
    subject, keep = _subject(run, test)
    if subject is None:
        return
    value = run.eval(subject)
    if isinstance(value, Choice):
        kept = [option for option in value.options if keep(option) in (side, None)]
        if kept and len(kept) < len(value.options):
            objects.assign(run, subject, choice(kept))


def _subject(run: Interpreter, test: Any) -> tuple[Any, Callable[[Value], bool | None]]:
    simple = (cst.Name, cst.Attribute)
    if type(test) in simple:
        return test, truth
    if type(test) is cst.Comparison and len(test.comparisons) == 1 and type(test.left) in simple:
        part = test.comparisons[0]
        right = part.comparator
        if type(right) is cst.Name and right.value == "None":
            wanted = type(part.operator) in (cst.Is, cst.Equal)
            return test.left, lambda v: (isinstance(v, Const) and v.value is None) == wanted
        if type(part.operator) in (cst.Equal, cst.NotEqual):
            other = constant(run.eval(right))
            wanted = type(part.operator) is cst.Equal
            return test.left, lambda v: (v.value == other) == wanted if isinstance(v, Const) else None
    return None, truth


def _for(run: Interpreter, node: cst.For) -> bool:
    iterable = run.eval(node.iter)
    items = objects.concrete(run, iterable)
    if items is None:
        item = objects.element(run, iterable)
        return loop(run, node, lambda number: objects.assign(run, node.target, item), 2)
    if not items:
        return _else(run, node)
    return loop(run, node, lambda number: objects.assign(run, node.target, items[number]), len(items), items)


def _while(run: Interpreter, node: cst.While) -> bool:
    if truth(run.eval(node.test)) is False:
        return True
    return loop(run, node, lambda number: None, 2)


def loop(
    run: Interpreter, node: Any, begin: Callable[[int], None], count: int, items: list[Value] | None = None
) -> bool:
    """Runs a loop body `count` times, joining what `continue` and `break` leave behind."""
    frame = run.frames[-1]
    loop = Loop(run.heap.mark(), node)
    frame.loops.append(loop)
    outer = run.loops
    single = items is not None and len(items) == 1
    alive = True
    try:
        for number in range(count):
            loop.iteration_mark = run.heap.mark()
            loop.continues = []
            if not single:
                run._turns += 1
                run.loops = (*outer, run._turns)
            _forget_assumptions(run)
            begin(number)
            alive = run.body(node.body)
            if loop.continues:
                outcomes = list(loop.continues)
                if alive:
                    outcomes.append(run.heap.changes(loop.iteration_mark))
                run.heap.undo(loop.iteration_mark)
                run.heap.merge(outcomes)
                alive = True
            if not alive:
                break
        _forget_assumptions(run)
    finally:
        run.loops = outer
        frame.loops.pop()
    if loop.breaks:
        outcomes = list(loop.breaks)
        if alive:
            outcomes.append(run.heap.changes(loop.mark))
        run.heap.undo(loop.mark)
        run.heap.merge(outcomes)
    elif not alive and isinstance(node, (cst.For, cst.While)):
        # A body that always returns or raises: what follows the loop is still run, as after no iteration.
        run.heap.undo(loop.mark)
    return True


def _forget_assumptions(run: Interpreter) -> None:
    states = run.paths
    kept = {frozenset(e for e in state if e[0] != "assume") for state in states}
    if kept != states:
        run.set_paths(kept)


def _break(run: Interpreter, node: Any) -> bool:
    loops = run.frames[-1].loops
    if loops:
        loops[-1].breaks.append(run.heap.changes(loops[-1].mark))
    return False


def _continue(run: Interpreter, node: Any) -> bool:
    loops = run.frames[-1].loops
    if loops:
        loops[-1].continues.append(run.heap.changes(loops[-1].iteration_mark))
    return False


def _return(run: Interpreter, node: cst.Return) -> bool:
    value = run.eval(node.value) if node.value is not None else NONE
    frame = run.frames[-1]
    if node.value is not None and isinstance(frame.owner, Class):
        run.library.returned(frame.owner, frame.function.name.value, value, node)
    frame.exits.append((run.heap.changes(frame.mark), value))
    return False


def _raise(run: Interpreter, node: cst.Raise) -> bool:
    if node.exc is not None:
        run.eval(node.exc)
    return False


def _try(run: Interpreter, node: Any) -> bool:
    mark = run.heap.mark()
    run.guards.append("try" if node.handlers else "")
    try:
        return _try_blocks(run, node, mark)
    finally:
        run.guards.pop()


def _try_blocks(run: Interpreter, node: Any, mark: int) -> bool:
    alive = run.body(node.body)
    outcomes: list[Changes] = []
    if alive and node.orelse is not None:
        alive = run.body(node.orelse.body)
    if node.handlers:
        if alive:
            outcomes.append(run.heap.changes(mark))
        before_handlers = run.heap.changes(mark)
        for handler in node.handlers:
            run.heap.undo(mark)
            run.heap.merge([before_handlers])
            if handler.name is not None:
                objects.assign(run, handler.name.name, unknown())
            if run.body(handler.body):
                outcomes.append(run.heap.changes(mark))
        run.heap.undo(mark)
        alive = bool(outcomes)
        if outcomes:
            run.heap.merge(outcomes)
    if node.finalbody is not None:
        alive = run.body(node.finalbody.body) and alive
    return alive


def _match(run: Interpreter, node: Any) -> bool:
    run.eval(node.subject)
    mark = run.heap.mark()
    outcomes = [run.heap.changes(mark)]
    for case in node.cases:
        if run.body(case.body):
            outcomes.append(run.heap.changes(mark))
        run.heap.undo(mark)
    run.heap.merge(outcomes)
    return True


STATEMENTS: dict[type, Callable[[Interpreter, Any], bool]] = {
    cst.If: _if,
    cst.For: _for,
    cst.While: _while,
    cst.Break: _break,
    cst.Continue: _continue,
    cst.Return: _return,
    cst.Raise: _raise,
    cst.Try: _try,
    cst.TryStar: _try,
    cst.Match: _match,
}
