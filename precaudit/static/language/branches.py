"""Statements that part and join paths: if, loops, try, match, return."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst

from precaudit.static.language import conditions, objects
from precaudit.static.language.heap import MISSING, Changes, Store
from precaudit.static.language.scopes import Loop
from precaudit.static.language.values import (
    NONE,
    Assumed,
    Choice,
    Class,
    Const,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Seq,
    Value,
    choice,
    constant,
    distinct,
    options,
    truth,
    unknown,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter


def _if(run: Interpreter, node: Any) -> bool:
    test = run.eval(node.test)
    known = truth(test)
    if known is True:
        return run.body(node.body)
    if known is False:
        return _else(run, node)
    return either(run, node.test, lambda: run.body(node.body), lambda: _else(run, node))


def _else(run: Interpreter, node: Any) -> bool:
    if node.orelse is None:
        return True
    if type(node.orelse) is cst.If:
        return run.statement(node.orelse)
    return run.body(node.orelse.body)


class Split(NamedTuple):
    """What a store held at the end of either side of a branch, and what it holds since they were joined."""

    store: Store
    key: Any
    then: Any
    orelse: Any
    joined: Any


class Narrowed(NamedTuple):
    """What a store held before a side of a branch, and what it holds there, where more is known."""

    store: Store
    key: Any
    before: Any
    inside: Any


MAX_SPLITS, MAX_SPLIT_VALUES = 32, 24
"""Conditions whose sides are remembered, and values of each; the latest stay."""


def either(run: Interpreter, test: Any, then: Callable[[], bool], orelse: Callable[[], bool]) -> bool:
    """Runs both sides of an undecided condition from the same state, unless a path's assumptions decide it."""
    run.guards.append(run.text(test))
    try:
        return _fork(run, test, conditions.formula(run, test), then, orelse)
    finally:
        run.guards.pop()


def _fork(
    run: Interpreter,
    test: Any,
    condition: conditions.Condition,
    then: Callable[[], bool],
    orelse: Callable[[], bool],
) -> bool:
    outcomes: dict[bool, Changes] = {}
    narrowed: dict[bool, list[Narrowed]] = {}
    mark = run.heap.mark()
    before = run.paths
    asked = conditions.keys(condition)
    emptied = [key for key in asked if key in run.empty]
    verdicts = {state: conditions.known(condition, conditions.assumptions(state)) for state in before}
    for side, follow in ((True, then), (False, orelse)):
        possible = [state for state, verdict in verdicts.items() if verdict is not (not side)]
        if not possible:
            continue
        run.set_paths(_assume(run, state, condition, side, emptied) for state in possible)
        narrowed[side] = [*_take_apart(run, asked), *_refine(run, test, side)]
        if follow():
            outcomes[side] = run.heap.changes(mark)
        run.heap.undo(mark)
    if not outcomes:
        return False
    if len(outcomes) == 2:
        outcomes = {side: _widened(changes, narrowed[side]) for side, changes in outcomes.items()}
    ends = [{**_present(outcomes, side), **outcomes[side]} for side in outcomes]
    run.heap.merge(list(outcomes.values()))
    if len(outcomes) == 2:
        _remember(run, condition, *ends)
    return True


def _assume(
    run: Interpreter, state: conditions.State, condition: conditions.Condition, side: bool, emptied: Sequence[Any]
) -> conditions.State:
    """The state of a path that takes this side, and the side of an earlier branch on which what is tested is so."""
    state = conditions.assume(state, condition, side)
    for key in emptied:
        # `scaler = Scaler() if amp else None`: where there is none, and only there, amp was false.
        earlier, when = run.empty[key]
        wanted = conditions.assumptions(state).get(key)
        if wanted is not None and earlier is not condition:
            state = conditions.assume(state, earlier, when is not wanted)
    return state


def _present(outcomes: dict[bool, Changes], side: bool) -> Changes:
    """What this side of a branch left as it was, of what the other wrote."""
    written = outcomes.get(not side, {})
    return {at: (store, key, store.get(key, MISSING)) for at, (store, key, _) in written.items()}


def _remember(run: Interpreter, condition: Any, then: Changes, orelse: Changes) -> None:
    """Notes what stood at the end of the two sides, so that where the condition is known again each value is."""
    found = []
    for at, (store, key, value) in then.items():
        other, joined = orelse[at][2], store.get(key, MISSING)
        if store is not run.world and value is not other and MISSING not in (value, other, joined):
            found.append(Split(store, key, value, other, joined))
    for split in found:
        empty = [truth(value) is False for value in (split.then, split.orelse)]
        if empty[0] != empty[1]:
            run.empty["value", id(split.joined)] = condition, empty[0]
            run.keep(split.joined)
    if found:
        _, earlier = run.splits.pop(condition, (None, ()))
        current = [split for split in earlier if split.store.get(split.key) is split.joined]
        run.splits[condition] = conditions.keys(condition), [*current, *found][-MAX_SPLIT_VALUES:]
        if len(run.splits) > MAX_SPLITS:
            del run.splits[next(iter(run.splits))]


def _take_apart(run: Interpreter, asked: frozenset[Any]) -> list[Narrowed]:
    """Puts what one side of an earlier branch wrote, where every path that leads here took that side."""
    narrowed = []
    if not run.empty.keys().isdisjoint(asked):
        asked = asked.union(*(conditions.keys(run.empty[key][0]) for key in asked & run.empty.keys()))
    touched = [(each, splits) for each, (keys, splits) in run.splits.items() if not asked.isdisjoint(keys)]
    everywhere = [conditions.assumptions(state) for state in run.paths] if touched else []
    for condition, splits in touched:
        verdicts = {conditions.known(condition, assumed) for assumed in everywhere}
        if len(verdicts) == 1 and None not in verdicts:
            side = verdicts.pop()
            for store, key, then, orelse, joined in splits:
                if store.get(key) is joined:
                    run.heap.put(store, key, then if side else orelse)
                    narrowed.append(Narrowed(store, key, joined, then if side else orelse))
    return narrowed


def _widened(changes: Changes, narrowed: list[Narrowed]) -> Changes:
    """The changes, with what was only known better on this side as it was before."""
    for store, key, before, inside in reversed(narrowed):
        at = (id(store), key)
        if at in changes and changes[at][2] is inside:
            changes[at] = (store, key, before)
    return changes


def _refine(run: Interpreter, test: Any, side: bool) -> list[Narrowed]:
    """Narrows `x` inside `if x`, `if x is not None`, `if x == 1` when x is one of several values."""
    if type(test) is cst.UnaryOperation and type(test.operator) is cst.Not:
        return _refine(run, test.expression, not side)
    if type(test) is cst.BooleanOperation:
        if (type(test.operator) is cst.And) == side:
            return [*_refine(run, test.left, side), *_refine(run, test.right, side)]
        return []
    subject, keep = _subject(run, test)
    value = run.eval(subject) if subject is not None else None
    if not isinstance(value, Choice):
        return []
    kept = [option for option in value.options if keep(option) in (side, None)]
    if not kept or len(kept) == len(value.options):
        return []
    mark = run.heap.mark()
    objects.assign(run, subject, choice(kept))
    return [Narrowed(store, key, value, inside) for store, key, inside in run.heap.changes(mark).values()]


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
        return _over_unknown(run, node, objects.element(run, iterable))
    if not items:
        return _else(run, node)
    return loop(run, node, lambda number: objects.assign(run, node.target, items[number]), len(items), items)


def _over_unknown(run: Interpreter, node: cst.For, item: Value) -> bool:
    """One item stands for all: what is assumed of it in one turn says nothing of it in another."""
    before = run.later

    def begin(number: int) -> None:
        if number:
            run.later = before | {*stores(item), *names(node.target)}
        objects.assign(run, node.target, replace(item) if isinstance(item, Opaque) else item)

    try:
        return loop(run, node, begin, 2)
    finally:
        run.later = before


def names(target: Any) -> Iterator[str]:
    """The names that a loop assigns."""
    if isinstance(target, cst.Name):
        yield target.value
    elif isinstance(target, (cst.Tuple, cst.List)):
        for element in target.elements:
            yield from names(element.value)


def stores(value: Any, depth: int = 2) -> Iterator[int]:
    """The identities of what a loop's item is, and of what it holds."""
    for option in options(value):
        if isinstance(option, (Instance, Opaque, Optimizer)):
            yield id(option.store)
        held = (
            option.items if isinstance(option, Seq) else option.store.values() if isinstance(option, Instance) else ()
        )
        for part in held if depth else ():
            if isinstance(part, Value):
                yield from stores(part, depth - 1)


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
            _next_turn(run, node)
            if number and items is None:
                _count_on(run, loop.mark)
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
        _next_turn(run, node)
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


def _count_on(run: Interpreter, mark: int) -> None:
    """Numbers that a turn of a loop changed: of the turns that follow nobody knows which one is meant."""
    for store, key, before in run.heap.rewritten(mark):
        now = store.get(key)
        if now is not before and _counts(before) and _counts(now) and now != before:
            run.heap.put(store, key, Number())


def _counts(value: Any) -> bool:
    return isinstance(value, Const) and type(value.value) in (int, float)


def _next_turn(run: Interpreter, loop: Any) -> None:
    """Forgets what was assumed of conditions that a turn of the loop may change."""
    states = run.paths
    if any(type(event) is Assumed for state in states for event in state):
        changed = run.changed_by(loop)
        run.set_paths(distinct(conditions.next_turn(state, changed) for state in states))


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
    run.guards.append("try" if any(MISSING_API.search(_caught(run, h)) for h in node.handlers) else "")
    try:
        return _try_blocks(run, node, mark)
    finally:
        run.guards.pop()


MISSING_API = re.compile(r"^$|Exception|ImportError|ModuleNotFound|Attribute|TypeError|NotImplemented|RuntimeError")
"""What a handler catches that stands around a call which an older or newer version does not have."""


def _caught(run: Interpreter, handler: Any) -> str:
    return run.text(handler.type) if handler.type is not None else ""


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
    return _case(run, node.subject, node.cases)


def _case(run: Interpreter, subject: Any, cases: Sequence[Any]) -> bool:
    """The first of the cases, or else one of those that follow it; the paths are told apart as by `if` and `elif`."""
    if not cases:
        return True
    first, rest = cases[0], cases[1:]
    test = _pattern_test(subject, first.pattern)
    if first.guard is not None:
        guard = first.guard
        test = guard if test is True else None if test is None else cst.BooleanOperation(test, cst.And(), guard)
    if test is True:
        _bind_pattern(run, subject, first.pattern)
        return run.body(first.body)
    if test is None:
        mark = run.heap.mark()
        _bind_pattern(run, subject, first.pattern)
        outcomes = [run.heap.changes(mark)] if run.body(first.body) else []
        run.heap.undo(mark)
        if _case(run, subject, rest):
            outcomes.append(run.heap.changes(mark))
        run.heap.undo(mark)
        if outcomes:
            run.heap.merge(outcomes)
        return bool(outcomes)
    known = truth(run.eval(test))
    if known is not None:
        return run.body(first.body) if known else _case(run, subject, rest)
    return either(run, test, lambda: run.body(first.body), lambda: _case(run, subject, rest))


def _pattern_test(subject: Any, pattern: Any) -> Any:
    """The condition under which a pattern of plain values fits; True where it always does, None where who knows."""
    kind = type(pattern)
    if kind is cst.MatchAs and pattern.pattern is None:
        return True
    if kind is cst.MatchOr:
        tests = [_pattern_test(subject, element.pattern) for element in pattern.patterns]
        if None in tests or True in tests:
            return None if None in tests else True
        return reduce(lambda one, other: cst.BooleanOperation(one, cst.Or(), other), tests)
    if kind is cst.MatchValue or kind is cst.MatchSingleton:
        sign = cst.Equal() if kind is cst.MatchValue else cst.Is()
        return cst.Comparison(subject, [cst.ComparisonTarget(sign, pattern.value)])
    return None


def _bind_pattern(run: Interpreter, subject: Any, pattern: Any) -> None:
    """`case name:` binds what is matched; of what deeper patterns bind nothing is known."""
    whole = type(pattern) is cst.MatchAs and pattern.pattern is None
    if type(pattern) in (cst.MatchAs, cst.MatchStar) and pattern.name is not None:
        objects.assign(run, pattern.name, run.eval(subject) if whole else unknown())
    for part in pattern.children:
        _bind_inside(run, part)


def _bind_inside(run: Interpreter, pattern: Any) -> None:
    if type(pattern) in (cst.MatchAs, cst.MatchStar) and pattern.name is not None:
        objects.assign(run, pattern.name, unknown())
    for part in pattern.children:
        _bind_inside(run, part)


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
