"""Python's syntax as check walks it: nodes with the names and fields of LibCST's, made from Python's own parser.

Python's parser takes an eighth of LibCST's time. A suite becomes nodes when it is asked for; most never are. Source
that this Python is too old for is parsed by LibCST, and gives the same nodes.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

DEPTH = 12_000
"""Frames that a parse may take: three for each link of the longest chain that is followed."""


class Place(NamedTuple):
    """Where something stands: lines from 1, columns in bytes from 0."""

    lineno: int
    col_offset: int
    end_lineno: int
    end_col_offset: int


class Node:
    """A piece of syntax. `at` is what has its place: the node of `ast` that it was made from, or a Place."""

    __slots__ = ("at",)
    at: Any
    fields: ClassVar[tuple[str, ...]] = ()
    """The names of what it holds, in the order of its constructor."""

    if TYPE_CHECKING:

        def __init__(self, at: Any, *fields: Any) -> None: ...

    def __init_subclass__(cls) -> None:
        """Gives a class a constructor that takes `at` and its fields in order, as a dataclass would in more time."""
        names = cls.fields = tuple(cls.__annotations__)
        lines = "\n".join(f" self.{name} = {name}" for name in ("at", *names))
        made: dict[str, Any] = {}
        exec(f"def __init__({', '.join(('self', 'at' if names else 'at=None', *names))}):\n{lines}", made)
        cls.__init__ = made["__init__"]  # type: ignore[method-assign]


class Suite(Node):
    """The statements under a head."""

    __slots__ = ("_waiting",)

    @property
    def body(self) -> Sequence[Any]:
        waiting = self._waiting
        if type(waiting) is list:
            self._waiting = waiting = tuple(map(statement, waiting))
        return waiting  # type: ignore[no-any-return]

    _waiting: Any


class Module(Node):
    __slots__ = ("body",)
    body: Sequence[Any]


class Name(Node):
    __slots__ = ("value",)
    value: str


class Attribute(Node):
    __slots__ = ("attr", "value")
    value: Any
    attr: Name


class Call(Node):
    __slots__ = ("args", "func")
    func: Any
    args: Sequence[Arg]


class Arg(Node):
    __slots__ = ("keyword", "star", "value")
    value: Any
    keyword: Name | None
    star: str


class Subscript(Node):
    __slots__ = ("slice", "value")
    value: Any
    slice: Sequence[SubscriptElement]


class SubscriptElement(Node):
    __slots__ = ("slice",)
    slice: Any


class Index(Node):
    __slots__ = ("value",)
    value: Any


class Slice(Node):
    __slots__ = ("lower", "step", "upper")
    lower: Any
    upper: Any
    step: Any


class SimpleString(Node):
    """A string or bytes, however many pieces it is written in; `value` is what it means, not how it is spelled."""

    __slots__ = ("value",)
    value: str | bytes


class Integer(Node):
    __slots__ = ("value",)
    value: int


class Float(Node):
    __slots__ = ("value",)
    value: float


class FormattedString(Node):
    __slots__ = ("parts",)
    parts: Sequence[Any]


class FormattedStringText(Node):
    __slots__ = ("value",)
    value: str


class FormattedStringExpression(Node):
    __slots__ = ("expression",)
    expression: Any


class BinaryOperation(Node):
    __slots__ = ("left", "operator", "right")
    left: Any
    operator: Any
    right: Any


class BooleanOperation(Node):
    __slots__ = ("left", "operator", "right")
    left: Any
    operator: Any
    right: Any


class UnaryOperation(Node):
    __slots__ = ("expression", "operator")
    operator: Any
    expression: Any


class Comparison(Node):
    __slots__ = ("comparisons", "left")
    left: Any
    comparisons: Sequence[ComparisonTarget]


class ComparisonTarget(Node):
    __slots__ = ("comparator", "operator")
    operator: Any
    comparator: Any


class IfExp(Node):
    __slots__ = ("body", "orelse", "test")
    test: Any
    body: Any
    orelse: Any


class Tuple(Node):
    __slots__ = ("elements",)
    elements: Sequence[Any]


class List(Node):
    __slots__ = ("elements",)
    elements: Sequence[Any]


class Set(Node):
    __slots__ = ("elements",)
    elements: Sequence[Any]


class Element(Node):
    __slots__ = ("value",)
    value: Any


class StarredElement(Node):
    __slots__ = ("value",)
    value: Any


class Dict(Node):
    __slots__ = ("elements",)
    elements: Sequence[Any]


class DictElement(Node):
    __slots__ = ("key", "value")
    key: Any
    value: Any


class StarredDictElement(Node):
    __slots__ = ("value",)
    value: Any


class ListComp(Node):
    __slots__ = ("elt", "for_in")
    elt: Any
    for_in: CompFor


class SetComp(Node):
    __slots__ = ("elt", "for_in")
    elt: Any
    for_in: CompFor


class GeneratorExp(Node):
    __slots__ = ("elt", "for_in")
    elt: Any
    for_in: CompFor


class DictComp(Node):
    __slots__ = ("for_in", "key", "value")
    key: Any
    value: Any
    for_in: CompFor


class CompFor(Node):
    __slots__ = ("ifs", "inner_for_in", "iter", "target")
    target: Any
    iter: Any
    ifs: Sequence[CompIf]
    inner_for_in: CompFor | None


class CompIf(Node):
    __slots__ = ("test",)
    test: Any


class Lambda(Node):
    __slots__ = ("body", "params")
    params: Parameters
    body: Any


class NamedExpr(Node):
    __slots__ = ("target", "value")
    target: Any
    value: Any


class Await(Node):
    __slots__ = ("expression",)
    expression: Any


class Yield(Node):
    __slots__ = ("value",)
    value: Any


class From(Node):
    """The `from` of a `yield`."""

    __slots__ = ("item",)
    item: Any


class Parameters(Node):
    __slots__ = ("kwonly_params", "params", "posonly_params", "star_arg", "star_kwarg")
    params: Sequence[Param]
    posonly_params: Sequence[Param]
    kwonly_params: Sequence[Param]
    star_arg: Any
    star_kwarg: Param | None


class Param(Node):
    __slots__ = ("annotation", "default", "name")
    name: Name
    annotation: Annotation | None
    default: Any


class Annotation(Node):
    __slots__ = ("annotation",)
    annotation: Any


class Other(Node):
    """What check gives no meaning to: `del`, `pass`, `...`, a complex number, a type alias."""

    __slots__ = ()


class SimpleStatementLine(Node):
    """A statement without a suite."""

    __slots__ = ("body",)
    body: Sequence[Any]


class Expr(Node):
    __slots__ = ("value",)
    value: Any


class Assign(Node):
    __slots__ = ("targets", "value")
    targets: Sequence[AssignTarget]
    value: Any


class AssignTarget(Node):
    __slots__ = ("target",)
    target: Any


class AnnAssign(Node):
    __slots__ = ("annotation", "target", "value")
    target: Any
    annotation: Annotation
    value: Any


class AugAssign(Node):
    __slots__ = ("operator", "target", "value")
    target: Any
    operator: Any
    value: Any


class Return(Node):
    __slots__ = ("value",)
    value: Any


class Raise(Node):
    __slots__ = ("exc",)
    exc: Any


class Assert(Node):
    __slots__ = ("test",)
    test: Any


class Break(Node):
    __slots__ = ()


class Continue(Node):
    __slots__ = ()


class Global(Node):
    __slots__ = ("names",)
    names: Sequence[NameItem]


class Nonlocal(Node):
    __slots__ = ("names",)
    names: Sequence[NameItem]


class NameItem(Node):
    __slots__ = ("name",)
    name: Name


class Import(Node):
    __slots__ = ("names",)
    names: Sequence[ImportAlias]


class ImportFrom(Node):
    __slots__ = ("module", "names", "relative")
    module: Any
    names: Any
    relative: int
    """The number of dots."""


class ImportStar(Node):
    __slots__ = ()


class ImportAlias(Node):
    __slots__ = ("asname", "name")
    name: Any
    asname: AsName | None


class AsName(Node):
    __slots__ = ("name",)
    name: Any


class If(Node):
    __slots__ = ("body", "orelse", "test")
    test: Any
    body: Suite
    orelse: Any


class Else(Node):
    __slots__ = ("body",)
    body: Suite


class For(Node):
    __slots__ = ("body", "iter", "orelse", "target")
    target: Any
    iter: Any
    body: Suite
    orelse: Else | None


class While(Node):
    __slots__ = ("body", "orelse", "test")
    test: Any
    body: Suite
    orelse: Else | None


class With(Node):
    __slots__ = ("body", "items")
    items: Sequence[WithItem]
    body: Suite


class WithItem(Node):
    __slots__ = ("asname", "item")
    item: Any
    asname: AsName | None


class Try(Node):
    __slots__ = ("body", "finalbody", "handlers", "orelse")
    body: Suite
    handlers: Sequence[ExceptHandler]
    orelse: Else | None
    finalbody: Else | None


class TryStar(Node):
    __slots__ = ("body", "finalbody", "handlers", "orelse")
    body: Suite
    handlers: Sequence[ExceptHandler]
    orelse: Else | None
    finalbody: Else | None


class ExceptHandler(Node):
    __slots__ = ("body", "name", "type")
    type: Any
    name: AsName | None
    body: Suite


class Match(Node):
    __slots__ = ("cases", "subject")
    subject: Any
    cases: Sequence[MatchCase]


class MatchCase(Node):
    __slots__ = ("body", "guard", "pattern")
    pattern: Any
    guard: Any
    body: Suite


class MatchValue(Node):
    __slots__ = ("value",)
    value: Any


class MatchSingleton(Node):
    __slots__ = ("value",)
    value: Any


class MatchOr(Node):
    __slots__ = ("patterns",)
    patterns: Sequence[MatchOrElement]


class MatchOrElement(Node):
    __slots__ = ("pattern",)
    pattern: Any


class MatchAs(Node):
    __slots__ = ("name", "pattern")
    pattern: Any
    name: Name | None


class MatchStar(Node):
    __slots__ = ("name",)
    name: Name | None


class MatchParts(Node):
    """A pattern made of others: a sequence, a mapping, a class."""

    __slots__ = ("patterns",)
    patterns: Sequence[Any]


class Decorator(Node):
    __slots__ = ("decorator",)
    decorator: Any


class FunctionDef(Node):
    __slots__ = ("body", "decorators", "name", "params", "returns")
    name: Name
    params: Parameters
    body: Suite
    decorators: Sequence[Decorator]
    returns: Annotation | None


class ClassDef(Node):
    __slots__ = ("bases", "body", "decorators", "name")
    name: Name
    body: Suite
    bases: Sequence[Arg]
    decorators: Sequence[Decorator]


class Operator(Node):
    """A sign; it has no place."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __init__(self, at: None = None) -> None: ...


def _operator(name: str) -> type[Operator]:
    return type(name, (Operator,), {"__slots__": ()})


Add, Subtract, Multiply = _operator("Add"), _operator("Subtract"), _operator("Multiply")
And, Or, Not, Plus, Minus = map(_operator, ("And", "Or", "Not", "Plus", "Minus"))
Equal, NotEqual, Is, IsNot, In, NotIn = map(_operator, ("Equal", "NotEqual", "Is", "IsNot", "In", "NotIn"))
SIGNS: dict[type, Operator] = {
    ast.And: And(None),
    ast.Or: Or(None),
    ast.Not: Not(None),
    ast.UAdd: Plus(None),
    ast.USub: Minus(None),
    ast.Invert: _operator("BitInvert")(None),
    ast.Add: Add(None),
    ast.Sub: Subtract(None),
    ast.Mult: Multiply(None),
    ast.Eq: Equal(None),
    ast.NotEq: NotEqual(None),
    ast.Is: Is(None),
    ast.IsNot: IsNot(None),
    ast.In: In(None),
    ast.NotIn: NotIn(None),
}
BINARY: dict[type, str] = {
    ast.Div: "Divide",
    ast.FloorDiv: "FloorDivide",
    ast.Mod: "Modulo",
    ast.Pow: "Power",
    ast.MatMult: "MatrixMultiply",
    ast.LShift: "LeftShift",
    ast.RShift: "RightShift",
    ast.BitOr: "BitOr",
    ast.BitXor: "BitXor",
    ast.BitAnd: "BitAnd",
}
SIGNS |= {sign: _operator(name)(None) for sign, name in BINARY.items()}
ORDER: dict[type, str] = {
    ast.Lt: "LessThan",
    ast.LtE: "LessThanEqual",
    ast.Gt: "GreaterThan",
    ast.GtE: "GreaterThanEqual",
}
SIGNS |= {sign: _operator(name)(None) for sign, name in ORDER.items()}
ASSIGNING: dict[type, Operator] = {
    sign: _operator(f"{type(operator).__name__}Assign")(None)
    for sign, operator in SIGNS.items()
    if sign in BINARY or sign in (ast.Add, ast.Sub, ast.Mult)
}


def expression(made: ast.expr) -> Any:
    """The node of an expression."""
    return EXPRESSIONS.get(type(made), Other)(made)


def statement(made: Any) -> Any:
    """The node of a statement."""
    compound = COMPOUND.get(type(made))
    if compound is not None:
        return compound(made)
    simple = SIMPLE.get(type(made))
    if simple is None:
        return made if isinstance(made, Node) else SimpleStatementLine(made, (Other(made),))
    return SimpleStatementLine(made, (simple(made),))


def _maybe(made: ast.expr | None) -> Any:
    return None if made is None else expression(made)


def dotted_name(at: Any, name: str) -> Any:
    """`a.b.c` as nested attributes."""
    first, *others = name.split(".")
    found: Any = Name(at, first)
    for other in others:
        found = Attribute(at, found, Name(at, other))
    return found


def _constant(made: ast.Constant) -> Any:
    value = made.value
    kind = type(value)
    if kind is str or kind is bytes:
        return SimpleString(made, value)
    if kind is int:
        return Integer(made, value)
    if kind is float:
        return Float(made, value)
    return Name(made, str(value)) if value is None or kind is bool else Other(made)


def _call(made: ast.Call) -> Call:
    args = [
        Arg(arg, expression(arg.value), None, "*") if type(arg) is ast.Starred else Arg(arg, expression(arg), None, "")
        for arg in made.args
    ]
    for word in made.keywords:
        named = Name(word, word.arg) if word.arg is not None else None
        args.append(Arg(word, expression(word.value), named, "" if named else "**"))
    return Call(made, expression(made.func), args)


def _subscript(made: ast.Subscript) -> Subscript:
    inner = made.slice
    parts = inner.elts if type(inner) is ast.Tuple and inner.elts else [inner]
    return Subscript(made, expression(made.value), [SubscriptElement(part, _index(part)) for part in parts])


def _index(made: ast.expr) -> Any:
    if type(made) is ast.Slice:
        return Slice(made, _maybe(made.lower), _maybe(made.upper), _maybe(made.step))
    return Index(made, expression(made.value if type(made) is ast.Starred else made))


def _formatted(made: Any) -> FormattedString:
    parts: list[Any] = []
    for part in made.values:
        if type(part) is ast.Constant:
            parts.append(FormattedStringText(part, part.value))
        else:
            parts.append(FormattedStringExpression(part, expression(part.value)))
    return FormattedString(made, parts)


def _boolean(made: ast.BoolOp) -> Any:
    """`a and b and c` is `(a and b) and c`."""
    first, *others = made.values
    left, sign = expression(first), SIGNS[type(made.op)]
    for right in others:
        at: Any = Place(first.lineno, first.col_offset, right.end_lineno or 0, right.end_col_offset or 0)
        left = BooleanOperation(made if right is others[-1] else at, left, sign, expression(right))
    return left


def _comparison(made: ast.Compare) -> Comparison:
    pairs = zip(made.ops, made.comparators, strict=True)
    targets = [ComparisonTarget(right, SIGNS[type(sign)], expression(right)) for sign, right in pairs]
    return Comparison(made, expression(made.left), targets)


def _elements(made: Any) -> list[Any]:
    return [
        StarredElement(item, expression(item.value)) if type(item) is ast.Starred else Element(item, expression(item))
        for item in made.elts
    ]


def _dict(made: ast.Dict) -> Dict:
    return Dict(
        made,
        [
            StarredDictElement(value, expression(value))
            if key is None
            else DictElement(key, expression(key), expression(value))
            for key, value in zip(made.keys, made.values, strict=True)
        ],
    )


def _for_in(made: Sequence[ast.comprehension]) -> CompFor:
    first, *others = made
    tests = [CompIf(test, expression(test)) for test in first.ifs]
    inner = _for_in(others) if others else None
    return CompFor(first.target, expression(first.target), expression(first.iter), tests, inner)


def _parameters(made: ast.arguments) -> Parameters:
    placed = [*made.posonlyargs, *made.args]
    given: list[Any] = [*[None] * (len(placed) - len(made.defaults)), *made.defaults]
    params = [_param(one, default) for one, default in zip(placed, given, strict=True)]
    named = [_param(one, default) for one, default in zip(made.kwonlyargs, made.kw_defaults, strict=True)]
    front = len(made.posonlyargs)
    rest = _param(made.vararg, None) if made.vararg is not None else None
    return Parameters(
        None, params[front:], params[:front], named, rest, _param(made.kwarg, None) if made.kwarg is not None else None
    )


def _param(made: ast.arg, default: ast.expr | None) -> Param:
    return Param(made, Name(made, made.arg), _annotation(made.annotation), _maybe(default))


def _annotation(made: ast.expr | None) -> Annotation | None:
    return Annotation(made, expression(made)) if made is not None else None


def _as_name(at: Any, name: str | None) -> AsName | None:
    return AsName(at, Name(at, name)) if name is not None else None


def _aliases(made: Any) -> list[ImportAlias]:
    return [ImportAlias(one, dotted_name(one, one.name), _as_name(one, one.asname)) for one in made.names]


def _import_from(made: ast.ImportFrom) -> ImportFrom:
    names: Any = ImportStar(made) if made.names[0].name == "*" else _aliases(made)
    module = dotted_name(made, made.module) if made.module else None
    return ImportFrom(made, module, names, made.level)


def _if(made: ast.If) -> If:
    rest = made.orelse
    elif_ = len(rest) == 1 and type(rest[0]) is ast.If and rest[0].col_offset == made.col_offset
    return If(made, expression(made.test), Suite(made, made.body), _if(rest[0]) if elif_ else _else(rest))  # type: ignore[arg-type]


def _else(made: list[ast.stmt]) -> Else | None:
    return Else(made[0], Suite(made[0], made)) if made else None


def _for(made: Any) -> For:
    suite = Suite(made, made.body)
    return For(made, expression(made.target), expression(made.iter), suite, _else(made.orelse))


def _with(made: Any) -> With:
    items = [
        WithItem(
            one.context_expr,
            expression(one.context_expr),
            AsName(one.optional_vars, expression(one.optional_vars)) if one.optional_vars is not None else None,
        )
        for one in made.items
    ]
    return With(made, items, Suite(made, made.body))


def _try(made: Any) -> Any:
    handlers = [
        ExceptHandler(one, _maybe(one.type), _as_name(one, one.name), Suite(one, one.body)) for one in made.handlers
    ]
    kind = Try if type(made) is ast.Try else TryStar
    return kind(made, Suite(made, made.body), handlers, _else(made.orelse), _else(made.finalbody))


def _match_case(made: ast.match_case) -> MatchCase:
    return MatchCase(made.pattern, _pattern(made.pattern), _maybe(made.guard), Suite(made.pattern, made.body))


def _pattern(made: Any) -> Any:
    kind = type(made)
    if kind is ast.MatchValue:
        return MatchValue(made, expression(made.value))
    if kind is ast.MatchSingleton:
        return MatchSingleton(made, Name(made, str(made.value)))
    if kind is ast.MatchOr:
        return MatchOr(made, [MatchOrElement(one, _pattern(one)) for one in made.patterns])
    name = Name(made, made.name) if getattr(made, "name", None) is not None else None
    if kind is ast.MatchAs:
        return MatchAs(made, _pattern(made.pattern) if made.pattern is not None else None, name)
    if kind is ast.MatchStar:
        return MatchStar(made, name)
    inner = [*made.patterns, *getattr(made, "kwd_patterns", ())]
    return MatchParts(made, [_pattern(one) for one in inner])


def _decorators(made: Any) -> list[Decorator]:
    return [Decorator(one, expression(one)) for one in made.decorator_list]


def _function(made: Any) -> FunctionDef:
    suite, returns = Suite(made, made.body), _annotation(made.returns)
    return FunctionDef(made, Name(made, made.name), _parameters(made.args), suite, _decorators(made), returns)


def _class(made: ast.ClassDef) -> ClassDef:
    bases = [Arg(base, expression(base), None, "") for base in made.bases]
    return ClassDef(made, Name(made, made.name), Suite(made, made.body), bases, _decorators(made))


Make = Callable[[Any], Any]
EXPRESSIONS: dict[type, Make] = {
    ast.Name: lambda n: Name(n, n.id),
    ast.Constant: _constant,
    ast.Attribute: lambda n: Attribute(n, expression(n.value), Name(n, n.attr)),
    ast.Call: _call,
    ast.Subscript: _subscript,
    ast.JoinedStr: _formatted,
    ast.BinOp: lambda n: BinaryOperation(n, expression(n.left), SIGNS[type(n.op)], expression(n.right)),
    ast.UnaryOp: lambda n: UnaryOperation(n, SIGNS[type(n.op)], expression(n.operand)),
    ast.BoolOp: _boolean,
    ast.Compare: _comparison,
    ast.IfExp: lambda n: IfExp(n, expression(n.test), expression(n.body), expression(n.orelse)),
    ast.Tuple: lambda n: Tuple(n, _elements(n)),
    ast.List: lambda n: List(n, _elements(n)),
    ast.Set: lambda n: Set(n, _elements(n)),
    ast.Dict: _dict,
    ast.ListComp: lambda n: ListComp(n, expression(n.elt), _for_in(n.generators)),
    ast.SetComp: lambda n: SetComp(n, expression(n.elt), _for_in(n.generators)),
    ast.GeneratorExp: lambda n: GeneratorExp(n, expression(n.elt), _for_in(n.generators)),
    ast.DictComp: lambda n: DictComp(n, expression(n.key), expression(n.value), _for_in(n.generators)),
    ast.Lambda: lambda n: Lambda(n, _parameters(n.args), expression(n.body)),
    ast.NamedExpr: lambda n: NamedExpr(n, expression(n.target), expression(n.value)),
    ast.Await: lambda n: Await(n, expression(n.value)),
    ast.Yield: lambda n: Yield(n, _maybe(n.value)),
    ast.YieldFrom: lambda n: Yield(n, From(n, expression(n.value))),
    ast.Starred: lambda n: StarredElement(n, expression(n.value)),
}
SIMPLE: dict[type, Make] = {
    ast.Expr: lambda n: Expr(n, expression(n.value)),
    ast.Assign: lambda n: Assign(n, [AssignTarget(t, expression(t)) for t in n.targets], expression(n.value)),
    ast.AnnAssign: lambda n: AnnAssign(n, expression(n.target), _annotation(n.annotation), _maybe(n.value)),
    ast.AugAssign: lambda n: AugAssign(n, expression(n.target), ASSIGNING[type(n.op)], expression(n.value)),
    ast.Return: lambda n: Return(n, _maybe(n.value)),
    ast.Raise: lambda n: Raise(n, _maybe(n.exc)),
    ast.Assert: lambda n: Assert(n, expression(n.test)),
    ast.Break: Break,
    ast.Continue: Continue,
    ast.Global: lambda n: Global(n, [NameItem(n, Name(n, name)) for name in n.names]),
    ast.Nonlocal: lambda n: Nonlocal(n, [NameItem(n, Name(n, name)) for name in n.names]),
    ast.Import: lambda n: Import(n, _aliases(n)),
    ast.ImportFrom: _import_from,
}
COMPOUND: dict[type, Make] = {
    ast.If: _if,
    ast.For: _for,
    ast.AsyncFor: _for,
    ast.While: lambda n: While(n, expression(n.test), Suite(n, n.body), _else(n.orelse)),
    ast.With: _with,
    ast.AsyncWith: _with,
    ast.Try: _try,
    ast.Match: lambda n: Match(n, expression(n.subject), [_match_case(case) for case in n.cases]),
    ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function,
    ast.ClassDef: _class,
}
if sys.version_info >= (3, 11):
    COMPOUND[ast.TryStar] = _try


def parse(text: str) -> Module:
    """The tree of a text. Raises SyntaxError, and what Python's parser raises for a text that is nested too deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEPTH))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text).body
        return Module(None, tuple(map(statement, body)))
    finally:
        sys.setrecursionlimit(limit)


def parts(node: Node) -> Iterator[Any]:
    """What a node holds, in the order of its fields."""
    yield from [node.body] if isinstance(node, Suite) else (getattr(node, name) for name in node.fields)


def children(node: Node) -> list[Node]:
    """The nodes that stand directly in one."""
    found = [each for part in parts(node) for each in (part if isinstance(part, (list, tuple)) else (part,))]
    return [each for each in found if isinstance(each, Node)]


def walk(node: Node) -> Iterator[Node]:
    """A node and all that are in it, in the order of the source."""
    yield node
    for child in children(node):
        yield from walk(child)


def same(one: Any, other: Any) -> bool:
    """Whether two nodes are written with the same words, wherever they stand."""
    if isinstance(one, Node) and type(one) is type(other):
        one, other = list(parts(one)), list(parts(other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)
