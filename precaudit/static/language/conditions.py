"""What a path has assumed: the conditions that it took, told apart by the values they test and not by their text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst

from precaudit.static.language.values import (
    Assumed,
    Atom,
    Choice,
    Class,
    Const,
    Dict,
    Instance,
    ModuleRef,
    Opaque,
    Ref,
    Value,
    constant,
    parted,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter

State = frozenset[Any]

PURE = re.compile(r"\b(?:getattr|hasattr|isinstance|bool|callable)\(")
"""Calls that give the same answer in each turn of a loop."""
ASSIGNED = re.compile(
    r"^((?:[^=#\"'\n(]|(?<![\w\])])\()+)=(?!=)|\bfor[ \t]+([\w., \t()]{1,120}?)[ \t]in\b|\bas[ \t]+([\w., \t()]+)"
    r"|(?<!\w)(\w+)[ \t]*:=",
    re.MULTILINE,
)
"""What a line assigns to, a `for`, an `as`, a walrus. `amp.autocast(enabled=x)` is a call: it assigns nothing."""
CALLED = re.compile(r"(?<![\w.])(\w+)\.(?:\w+\.)*\w+\(")
"""The object of which a method is called, which may change it."""
WORD = re.compile(r"[A-Za-z_]\w*")


class Formula(NamedTuple):
    """`not`, `and`, `or` of conditions."""

    sign: str
    parts: tuple[Any, ...]


Condition = Atom | Formula


class Changed(NamedTuple):
    """The names that a loop assigns to, and those of objects of which it calls methods."""

    assigned: frozenset[str]
    called: frozenset[str]


def formula(run: Interpreter, test: Any) -> Condition:
    """The condition that an expression is."""
    if type(test) is cst.UnaryOperation and type(test.operator) is cst.Not:
        return Formula("not", (formula(run, test.expression),))
    if type(test) is cst.BooleanOperation:
        sign = "and" if type(test.operator) is cst.And else "or"
        return Formula(sign, (formula(run, test.left), formula(run, test.right)))
    if type(test) is cst.Comparison and len(test.comparisons) == 1:
        return _comparison(run, test)
    return _atom(run, test)


def _comparison(run: Interpreter, test: cst.Comparison) -> Condition:
    """`x is None` is `not x`; `x != y` is `not x == y`."""
    part = test.comparisons[0]
    kind = type(part.operator)
    if type(part.comparator) is cst.Name and part.comparator.value == "None" and kind in (cst.Is, cst.IsNot):
        subject = _atom(run, test.left)
        return subject if kind is cst.IsNot else Formula("not", (subject,))
    plain = {cst.NotEqual: cst.Equal, cst.NotIn: cst.In, cst.IsNot: cst.Is}.get(kind, kind)
    left, right = _atom(run, test.left), _atom(run, part.comparator)
    atom = Atom(
        (plain.__name__, left.key, right.key),
        left.words | right.words,
        left.lasting and right.lasting,
    )
    return atom if plain is kind else Formula("not", (atom,))


def _atom(run: Interpreter, node: Any) -> Atom:
    text = run.text(node)
    words = frozenset(WORD.findall(text))
    key = _key(run, node)
    if key is not None:
        return Atom(key, words, True)
    inner = id(run.scope.store)
    if type(node) is cst.Name:
        value = run.scope.find(node.value)
        run.keep(value)
        return Atom(("name", inner, node.value, id(value)), words, True)
    return Atom(("text", inner, text), words, "(" not in PURE.sub("", text))


def _key(run: Interpreter, node: Any) -> Any:
    """What tells the tested value from others, wherever it has been handed to; None where only its name does."""
    known = _held(run, node)
    if isinstance(known, Const):
        return ("constant", type(known.value), known.value) if isinstance(known.value, (str, int, float)) else None
    if isinstance(known, (Opaque, Choice)):
        run.keep(known)
        return ("value", id(known))
    if isinstance(known, Ref):
        return ("reference", known.name)
    if type(node) is cst.Attribute:
        front = _key(run, node.value)
        return ("attribute", front, node.attr.value) if front is not None and front[0] != "constant" else None
    if type(node) in (cst.SimpleString, cst.ConcatenatedString, cst.Integer, cst.Float):
        found = constant(run.eval(node))
        return ("constant", type(found), found)
    return None


def _held(run: Interpreter, node: Any) -> Value | None:
    """The value of a name or of an attribute that is stored, found without running anything."""
    if type(node) is cst.Name:
        return run.scope.find(node.value)
    if type(node) is cst.Attribute:
        owner = _held(run, node.value)
        if isinstance(owner, (Instance, ModuleRef, Class)):
            found: Value | None = owner.store.get(node.attr.value)
            return found
    if type(node) is cst.Subscript and len(node.slice) == 1 and type(node.slice[0].slice) is cst.Index:
        owner, index = _held(run, node.value), node.slice[0].slice.value
        if isinstance(owner, Dict) and type(index) is cst.SimpleString:
            item: Value | None = owner.store.get(constant(run.eval(index)))
            return item
    return None


@lru_cache(maxsize=4096)
def assumptions(state: State) -> Mapping[Any, bool]:
    """Key -> side, of what a path has assumed."""
    return {event.key: event.wanted for event in parted(state)[1]}


@lru_cache(maxsize=4096)
def _open(state: State) -> tuple[Assumed, ...]:
    """The formulas that a path has assumed, of whose parts none is known alone."""
    return tuple(event for event in parted(state)[1] if event.key[0] == OPEN)


def forget() -> None:
    """Lets go of the paths of a run that has ended."""
    for remembered in (assumptions, _open, parted):
        remembered.cache_clear()


def known(condition: Condition, assumed: Mapping[Any, bool]) -> bool | None:
    """Whether a condition is true where these others are; None where that is open."""
    if isinstance(condition, Atom):
        found = assumed.get(condition.key)
        if found is None and condition.key[0] == "Equal":
            _, left, right = condition.key
            others = [k for k, wanted in assumed.items() if wanted and k[0] == "Equal" and k[1] == left]
            if right[0] == "constant" and any(k[2][0] == "constant" and k[2] != right for k in others):
                return False
        return found
    verdicts = [known(part, assumed) for part in condition.parts]
    if condition.sign == "not":
        return None if verdicts[0] is None else not verdicts[0]
    decisive = condition.sign == "or"
    if decisive in verdicts:
        return decisive
    return assumed.get((OPEN, condition)) if None in verdicts else not decisive


def keys(condition: Condition) -> frozenset[Any]:
    """The keys of all that a condition is made of, and of what is compared with a value in it."""
    if isinstance(condition, Atom):
        return frozenset({condition.key, condition.key[:2]} if condition.key[0] == "Equal" else {condition.key})
    return frozenset().union(*map(keys, condition.parts))


def assume(state: State, condition: Condition, side: bool) -> State:
    """The state of a path that takes this side of a condition: what follows of its parts is known there."""
    if isinstance(condition, Atom):
        found = state | {Assumed("assume", condition.key, side, condition)}
    else:
        found = _with(state, _follows(state, condition, side))
    # `not (a and b)` was assumed before: where `a` is true now, `b` is false.
    for event in _open(state):
        found = _with(found, (row for row in _follows(found, event.key[1], event.wanted) if row[0].key[0] != OPEN))
    return found


def _with(state: State, follows: Iterable[tuple[Atom, bool]]) -> State:
    return state | {Assumed("assume", atom.key, wanted, atom) for atom, wanted in follows}


OPEN = "open"
"""Begins the key of a formula of whose parts none is known alone."""


def _follows(state: State, condition: Condition, side: bool) -> Iterable[tuple[Atom, bool]]:
    if isinstance(condition, Atom):
        yield condition, side
    elif condition.sign == "not":
        yield from _follows(state, condition.parts[0], not side)
    elif side == (condition.sign == "and"):
        for part in condition.parts:
            yield from _follows(state, part, side)
    else:
        assumed = assumptions(state)
        open_ = [part for part in condition.parts if known(part, assumed) is None]
        if len(open_) == 1:
            yield from _follows(state, open_[0], side)
        elif open_:
            parts = list(_atoms(condition))
            words = frozenset().union(*(atom.words for atom in parts))
            yield Atom((OPEN, condition), words, all(atom.lasting for atom in parts)), side


def _atoms(condition: Condition) -> Iterable[Atom]:
    """What a condition is made of."""
    if isinstance(condition, Atom):
        yield condition
    for part in condition.parts if isinstance(condition, Formula) else ():
        yield from _atoms(part)


def next_turn(state: State, changed: Changed) -> State:
    """What is still assumed in the next turn of a loop: what nothing in it can change."""
    happened, assumed = parted(state)
    kept = [e if e.kind == "held" else e._replace(kind="held") for e in assumed if lasts(e.atom, changed)]
    return happened.union(kept)


def lasts(atom: Atom, changed: Changed) -> bool:
    """Whether a condition is the same in each turn of a loop."""
    if not atom.lasting or atom.words & changed.assigned:
        return False
    return atom.key[0] == "value" or not atom.words & changed.called


def changes(text: str) -> Changed:
    """What the code of a loop may change, by its text."""
    assigned = {word for match in ASSIGNED.finditer(text) for word in WORD.findall(match[match.lastindex or 0])}
    return Changed(frozenset(assigned), frozenset(CALLED.findall(text)))
