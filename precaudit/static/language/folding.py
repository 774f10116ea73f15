"""What Python's operators give on values that are known, and on sets of dtypes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from precaudit.static.language.values import (
    ANY,
    Choice,
    Const,
    Dict,
    DType,
    Instance,
    Number,
    Opaque,
    Seq,
    Tensor,
    Value,
    choice,
    constant,
    unknown,
)

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Subtract": operator.sub,
    "Multiply": operator.mul,
    "Divide": operator.truediv,
    "FloorDivide": operator.floordiv,
    "Modulo": operator.mod,
    "BitOr": operator.or_,
    "BitAnd": operator.and_,
    "LeftShift": lambda a, b: a << b if 0 <= b < 128 else NotImplemented,
}


LONGEST_TEXT, LARGEST_BITS = 2000, 4000
"""Characters and bits up to which a constant that the code computes is worth knowing."""
WIDTH = re.compile(r"\d{3}|\*")
"""What makes a formatted text longer than its parts."""


def known(result: Any) -> Value:
    """The constant that an operation gave, unless it is too large to go on computing with."""
    if isinstance(result, (str, bytes)) and len(result) > LONGEST_TEXT:
        return unknown("string")
    if isinstance(result, int) and result.bit_length() > LARGEST_BITS:
        return Number()
    return Const(result)


def fold(op: str, left: Any, right: Any) -> Value:
    """Constant folding; a Number where the result is too large or undefined."""
    longer = op == "Multiply" or (op == "Modulo" and isinstance(left, (str, bytes)) and WIDTH.search(str(left)))
    if longer and (isinstance(left, (str, bytes)) or isinstance(right, (str, bytes))):
        return unknown("string")
    try:
        if op == "Power":
            if not isinstance(left, (int, float)) or not isinstance(right, (int, float)) or abs(right) > 400:
                return Number()
            result = float(left) ** right if isinstance(left, float) else left**right
        elif op in _OPERATORS:
            result = _OPERATORS[op](left, right)
        else:
            return unknown()
    except (ArithmeticError, TypeError, ValueError):
        return unknown()
    if isinstance(result, complex) or result is NotImplemented:
        return unknown()
    return known(result)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equal": operator.eq,
    "NotEqual": operator.ne,
    "LessThan": operator.lt,
    "LessThanEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEqual": operator.ge,
    "Is": operator.eq,
    "IsNot": operator.ne,
}


def compare_constants(op: str, left: Any, right: Any) -> Value:
    try:
        return Const(bool(_COMPARISONS[op](left, right)))
    except (TypeError, KeyError):
        return unknown()


def compare(op: str, left: Value, right: Value) -> Value:
    if isinstance(left, Choice) and not isinstance(right, Choice):
        return choice(compare(op, option, right) for option in left.options)
    if isinstance(right, Choice) and not isinstance(left, Choice):
        return choice(compare(op, left, option) for option in right.options)
    if op in ("Is", "IsNot") and constant(right) is None and isinstance(right, Const):
        if isinstance(left, Const):
            return Const((left.value is None) == (op == "Is"))
        if not isinstance(left, Opaque):
            return Const(op == "IsNot")
        return unknown()
    if isinstance(left, Instance) and "\0enum" in left.store:
        return _compare_member(op, left, right)
    if isinstance(left, DType) and isinstance(right, DType):
        if op in ("Equal", "NotEqual", "Is", "IsNot"):
            positive = op in ("Equal", "Is")
            if len(left.names) == 1 and left.names == right.names:
                return Const(positive)
            if not left.names & right.names:
                return Const(not positive)
        return unknown()
    if op in ("In", "NotIn"):
        return _contains(op, left, right)
    if isinstance(left, Const) and isinstance(right, Const):
        return compare_constants(op, left.value, right.value)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return Tensor(frozenset({"bool"}))
    return unknown()


def _compare_member(op: str, left: Instance, right: Value) -> Value:
    """A member of an enumeration against another, or against a plain value, which one that is also a str may equal."""
    if op in ("In", "NotIn"):
        members = right.items if isinstance(right, Seq) and not right.open else ()
        known = bool(members) and all(isinstance(i, Instance) and "\0enum" in i.store for i in members)
        return Const((left in members) == (op == "In")) if known else unknown()
    if op not in ("Equal", "NotEqual", "Is", "IsNot"):
        return unknown()
    if isinstance(right, Instance) and right.cls is left.cls and "\0enum" in right.store:
        return Const((left is right) == (op in ("Equal", "Is")))
    if isinstance(right, Const) and isinstance(left.store["value"], Const) and op in ("Equal", "NotEqual"):
        return unknown() if left.store["value"].value != right.value else Const(op == "Equal")
    return unknown()


def _contains(op: str, left: Value, right: Value) -> Value:
    positive = op == "In"
    if isinstance(left, Const) and isinstance(right, Const) and isinstance(right.value, str):
        if isinstance(left.value, str):
            return Const((left.value in right.value) == positive)
        return unknown()
    if isinstance(right, Seq) and not right.open:
        if isinstance(left, Const) and all(isinstance(i, Const) for i in right.items):
            return Const(any(i.value == left.value for i in right.items if isinstance(i, Const)) == positive)
        if isinstance(left, DType) and all(isinstance(i, DType) for i in right.items):
            names = frozenset().union(*(i.names for i in right.items if isinstance(i, DType)))
            if left.names <= names:
                return Const(positive)
            if not left.names & names:
                return Const(not positive)
    if isinstance(right, Dict) and isinstance(left, Const) and ANY not in right.store and right.kind == "dict":
        return Const((left.value in right.store) == positive)
    return unknown()
