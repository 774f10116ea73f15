"""The abstract value of each kind of expression."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.language import branches, calls, folding, objects
from precaudit.static.language.folding import fold
from precaudit.static.language.heap import MISSING, Store
from precaudit.static.language.scopes import Scope
from precaudit.static.language.values import (
    ANY,
    FALSE,
    NONE,
    TRUE,
    Const,
    Dict,
    Function,
    Number,
    Opaque,
    Ref,
    Seq,
    Super,
    Tensor,
    Value,
    choice,
    constant,
    join,
    join_all,
    options,
    seq,
    truth,
    unknown,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter

ITEMS_A_STATEMENT = 8
"""Items of a display that cost as much of the budget as a statement: some tables have thousands."""

_CONSTANTS: dict[str, Value] = {
    "True": TRUE,
    "False": FALSE,
    "None": NONE,
    "__name__": Const("__main__"),
    "Ellipsis": Const(...),
}


def _name(run: Interpreter, node: cst.Name) -> Value:
    name = node.value
    found = run.scope.find(name)
    if found is not None:
        return found
    if name == "__name__" and run.scope.source is not run.main:
        return Const(run.scope.source.module)
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name == "__file__":
        return run.library.file_name(run.scope.source)
    if hasattr(builtins, name):
        return Ref(f"builtins.{name}")
    return unknown()


def _attribute(run: Interpreter, node: cst.Attribute) -> Value:
    return objects.get_attribute(run, run.eval(node.value), node.attr.value, node)


def _subscript(run: Interpreter, node: cst.Subscript) -> Value:
    value = run.eval(node.value)
    return objects.get_item(run, value, objects.index_of(run, node), node)


def _call(run: Interpreter, node: cst.Call) -> Value:
    func: Any = node.func
    if type(func) is cst.Attribute and type(func.value) is cst.IfExp:
        return _call_of_either(run, node, func)
    function = run.eval(func)
    args, kwargs = _arguments(run, node)
    if isinstance(function, Ref) and function.name == "builtins.super":
        return _super(run, args)
    return calls.call(run, function, args, kwargs, node)


def _call_of_either(run: Interpreter, node: cst.Call, func: cst.Attribute) -> Value:
    """`(decay if p.ndim > 1 else rest).append(p)`: one of two objects is changed."""
    args, kwargs = _arguments(run, node)

    def of(side: Any) -> Value:
        method = objects.get_attribute(run, run.eval(side), func.attr.value, func)
        return calls.call(run, method, args, kwargs, node)

    return _either_value(run, func.value, of)


def _arguments(run: Interpreter, node: cst.Call) -> tuple[list[Value], dict[str, Value]]:
    """What a call is given, with lists and dicts behind stars spread out."""
    args: list[Value] = []
    kwargs: dict[str, Value] = {}
    for arg in node.args:
        value = run.eval(arg.value)
        if arg.star == "*":
            items = objects.concrete(run, value)
            if items is not None:
                args.extend(items)
            else:
                args.append(Seq({"items": (objects.element(run, value),), "open": True}, "star"))
        elif arg.star == "**":
            if isinstance(value, Dict):
                kwargs.update({k: v for k, v in value.store.items() if isinstance(k, str) and k != ANY})
                if ANY in value.store:
                    kwargs["\0rest"] = unknown()
            else:
                kwargs["\0rest"] = value
        elif arg.keyword is not None:
            kwargs[arg.keyword.value] = value
        else:
            args.append(value)
    return args, kwargs


def _super(run: Interpreter, args: list[Value]) -> Value:
    for frame in reversed(run.frames):
        if frame.receiver is not None:
            owner = args[0] if args else frame.owner
            return Super(owner, frame.receiver)
    return unknown()


def _marks(value: Value) -> frozenset[str]:
    return value.marks if isinstance(value, (Tensor, Opaque)) else frozenset()


def _binary(run: Interpreter, node: cst.BinaryOperation) -> Value:
    left, right = run.eval(node.left), run.eval(node.right)
    op = type(node.operator).__name__
    return binary(run, op, left, right, node)


def binary(run: Interpreter, op: str, left: Value, right: Value, node: Any) -> Value:
    if isinstance(left, Const) and isinstance(right, Const):
        return fold(op, left.value, right.value)
    if isinstance(left, Seq) and isinstance(right, Seq) and op == "Add":
        return seq((*left.items, *right.items), left.kind, left.open or right.open)
    if isinstance(left, Dict) and isinstance(right, Dict) and op == "BitOr":
        return Dict({**left.store, **right.store}, spot=left.spot)
    if isinstance(left, Seq) and left.kind in ("list", "tuple") and op == "Multiply":
        return seq(left.items, left.kind, open=True)
    return run.library.binary(op, left, right, node)


def _unary(run: Interpreter, node: cst.UnaryOperation) -> Value:
    value = run.eval(node.expression)
    if type(node.operator) is cst.Not:
        known = truth(value)
        return unknown() if known is None else Const(not known)
    if isinstance(value, Const) and isinstance(value.value, (int, float)):
        if type(node.operator) is cst.Minus:
            return Const(-value.value)
        if type(node.operator) is cst.Plus:
            return Const(+value.value)
        return Number()
    return value


def _boolean(run: Interpreter, node: cst.BooleanOperation) -> Value:
    left = run.eval(node.left)
    known = truth(left)
    conjunction = type(node.operator) is cst.And
    if known is not None:
        return run.eval(node.right) if known == conjunction else left
    right = run.eval(node.right)
    if truth(right) is (not conjunction):
        return Const(not conjunction) if isinstance(right, Const) and isinstance(right.value, bool) else unknown()
    if conjunction:
        return unknown(*_marks(right))
    kept = [option for option in options(left) if truth(option) is not False]
    return choice([*kept, right])


def _comparison(run: Interpreter, node: cst.Comparison) -> Value:
    left = run.eval(node.left)
    if len(node.comparisons) != 1:
        for part in node.comparisons:
            run.eval(part.comparator)
        return unknown()
    part = node.comparisons[0]
    right = run.eval(part.comparator)
    return folding.compare(type(part.operator).__name__, left, right)


def _if_exp(run: Interpreter, node: cst.IfExp) -> Value:
    return _either_value(run, node, run.eval)


def _either_value(run: Interpreter, node: Any, of: Callable[[Any], Value]) -> Value:
    """`of` the side that a conditional expression takes; of either where that is not known."""
    known = truth(run.eval(node.test))
    if known is not None:
        return of(node.body if known else node.orelse)
    found: list[Value] = []

    def side(expression: Any) -> Callable[[], bool]:
        def follow() -> bool:
            found.append(of(expression))
            return True

        return follow

    branches.either(run, node.test, side(node.body), side(node.orelse))
    return join_all(found)


def _sequence(run: Interpreter, node: Any) -> Value:
    run.spend(len(node.elements) // ITEMS_A_STATEMENT)
    items: list[Value] = []
    open_ = False
    for element in node.elements:
        value = run.eval(element.value)
        if type(element) is cst.StarredElement:
            known = objects.concrete(run, value)
            items.extend(known if known is not None else [objects.element(run, value)])
            open_ = open_ or known is None
        else:
            items.append(value)
    return seq(items, type(node).__name__.lower(), open_)


def _dict(run: Interpreter, node: cst.Dict) -> Value:
    run.spend(len(node.elements) // ITEMS_A_STATEMENT)
    store: Store = {}
    for element in node.elements:
        if type(element) is not cst.DictElement:
            value = run.eval(element.value)
            store.update(value.store if isinstance(value, Dict) else {ANY: unknown()})
            continue
        key = objects.key_of(run.eval(element.key))
        value = run.eval(element.value)
        if key is MISSING:
            store[ANY] = join(store.get(ANY, MISSING), value)
        else:
            store[key] = value
    return Dict(store, spot=run.spot(node))


def _comprehension(run: Interpreter, node: Any) -> Value:
    items, open_ = _generate(run, node.for_in, lambda: _element(run, node.elt))
    return seq(items, "list" if type(node) is cst.ListComp else "iterator", open_)


def _element(run: Interpreter, node: Any) -> Value:
    """One item of a comprehension, which may replace an older one."""
    rebuilt, run.rebuilt = run.rebuilt, frozenset()
    value = run.eval(node)
    run.rebuilt = rebuilt
    return run.library.rebuilding(node, rebuilt, value) if rebuilt else value


def _dict_comp(run: Interpreter, node: cst.DictComp) -> Value:
    pairs, open_ = _generate(run, node.for_in, lambda: seq([run.eval(node.key), _element(run, node.value)]))
    store: Store = {}
    for pair in pairs:
        assert isinstance(pair, Seq)
        key = objects.key_of(pair.items[0])
        if key is MISSING or open_:
            store[ANY] = join(store.get(ANY, MISSING), pair.items[1])
        else:
            store[key] = pair.items[1]
    return Dict(store)


def _generate(run: Interpreter, for_in: Any, produce: Callable[[], Value]) -> tuple[list[Value], bool]:
    outer = run.scope
    run.scope = Scope({}, outer, outer.source, outer.function)
    results: list[Value] = []
    try:
        open_ = _generate_into(run, for_in, produce, results)
    finally:
        run.scope = outer
    return results, open_


def _generate_into(run: Interpreter, for_in: Any, produce: Callable[[], Value], results: list[Value]) -> bool:
    iterable = run.eval(for_in.iter)
    items = objects.concrete(run, iterable)
    open_ = items is None
    doubtful: list[int] = []
    for item in items if items is not None else [objects.element(run, iterable)]:
        run.spend(1)
        objects.assign(run, for_in.target, item)
        verdicts = [truth(run.eval(condition.test)) for condition in for_in.ifs]
        if False in verdicts:
            continue
        open_ = open_ or None in verdicts
        if for_in.inner_for_in is not None:
            open_ = _generate_into(run, for_in.inner_for_in, produce, results) or open_
        else:
            if None in verdicts:
                doubtful.append(len(results))
            results.append(produce())
    for at, value in zip(doubtful, run.library.perhaps([results[at] for at in doubtful]), strict=True):
        results[at] = value
    return open_


def _lambda(run: Interpreter, node: cst.Lambda) -> Value:
    return Function(node, run.scope, calls.defaults(run, node.params))


def _literal(run: Interpreter, node: cst.SimpleString | cst.Integer | cst.Float) -> Value:
    found = run.literals.get(node)
    if found is None:
        value = node.evaluated_value
        found = run.literals[node] = folding.known(value) if isinstance(value, int) else Const(value)
    return found


def _concatenated(run: Interpreter, node: cst.ConcatenatedString) -> Value:
    """Strings side by side, any of which may be formatted."""
    left, right = run.eval(node.left), run.eval(node.right)
    if isinstance(left, Const) and isinstance(right, Const):
        return fold("Add", left.value, right.value)
    return unknown("string")


def _formatted(run: Interpreter, node: cst.FormattedString) -> Value:
    pieces: list[str] = []
    known = True
    for part in node.parts:
        if type(part) is cst.FormattedStringText:
            pieces.append(part.value.replace("{{", "{").replace("}}", "}"))
        elif type(part) is cst.FormattedStringExpression:
            value = run.eval(part.expression)
            known = known and isinstance(value, Const)
            pieces.append(str(constant(value)))
    return folding.known("".join(pieces)) if known else unknown("string")


def _named(run: Interpreter, node: cst.NamedExpr) -> Value:
    value = run.eval(node.value)
    objects.assign(run, node.target, value)
    return value


def _await(run: Interpreter, node: cst.Await) -> Value:
    return run.eval(node.expression)


def _yield(run: Interpreter, node: cst.Yield) -> Value:
    frame = run.frames[-1]
    value: Value = NONE
    if isinstance(node.value, cst.From):
        value = objects.element(run, run.eval(node.value.item))
    elif node.value is not None:
        value = run.eval(node.value)
    frame.yields.append(value)
    if frame.on_yield is not None:
        resume, frame.on_yield = frame.on_yield, None
        resume()
    return unknown()


EXPRESSIONS: dict[type, Callable[[Interpreter, Any], Value]] = {
    cst.Name: _name,
    cst.Attribute: _attribute,
    cst.Subscript: _subscript,
    cst.Call: _call,
    cst.BinaryOperation: _binary,
    cst.UnaryOperation: _unary,
    cst.BooleanOperation: _boolean,
    cst.Comparison: _comparison,
    cst.IfExp: _if_exp,
    cst.Tuple: _sequence,
    cst.List: _sequence,
    cst.Set: _sequence,
    cst.Dict: _dict,
    cst.ListComp: _comprehension,
    cst.GeneratorExp: _comprehension,
    cst.SetComp: _comprehension,
    cst.DictComp: _dict_comp,
    cst.Lambda: _lambda,
    cst.SimpleString: _literal,
    cst.ConcatenatedString: _concatenated,
    cst.FormattedString: _formatted,
    cst.Integer: _literal,
    cst.Float: _literal,
    cst.NamedExpr: _named,
    cst.Await: _await,
    cst.Yield: _yield,
}
