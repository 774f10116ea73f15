"""What Python's builtins and standard library give back when called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls, classes, objects
from precaudit.static.language.values import (
    ANY,
    NONE,
    Bound,
    Choice,
    Class,
    Const,
    Dict,
    Function,
    Instance,
    Number,
    Param,
    Ref,
    Seq,
    Tensor,
    Value,
    choice,
    constant,
    seq,
    truth,
    unknown,
)
from precaudit.static.overlays import Call, Method, command_lines
from precaudit.static.overlays.torch import modules, opaque, operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def arithmetic(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    name = name.removeprefix("math.")
    value = constant(args[0]) if args else None
    if isinstance(value, (int, float)) and name in ("sqrt", "log", "exp", "floor", "ceil", "log2"):
        try:
            return Const(getattr(math, name)(value))
        except (ValueError, OverflowError):
            return Number()
    return Number()


def partial(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    return Instance(
        Ref("functools.partial"), {"\0call": args[0], "\0args": seq(args[1:]), "\0kwargs": Dict(dict(kwargs))}
    )


def default_dict(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`defaultdict(lambda: torch.zeros(1))`: each key holds such a tensor; of other factories nothing is known."""
    made = calls.call(run.interpreter, args[0], [], {}, node) if args and isinstance(args[0], Function) else None
    return Dict({ANY: made}) if isinstance(made, Tensor) else unknown()


def namespace(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(Ref("types.SimpleNamespace"), {k: v for k, v in kwargs.items() if not k.startswith("\0")})


def isinstance_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    classes = args[1].items if isinstance(args[1], Seq) else (args[1],)
    verdicts = [_is_instance(run, args[0], cls) for cls in classes]
    if True in verdicts:
        return Const(True)
    return unknown() if None in verdicts else Const(False)


def _is_instance(run: Run, value: Value, cls: Value) -> bool | None:
    """Whether an object is of a class, None where that is not known."""
    if isinstance(value, Instance):
        if isinstance(cls, Class):
            return cls in classes.mro(value.cls)
        return _is_of_torch(run, value, cls.name) if isinstance(cls, Ref) else None
    if not isinstance(cls, Ref):
        return None
    if isinstance(value, (Tensor, Param)):
        return cls.name == "torch.Tensor" or (cls.name.endswith("nn.Parameter") and isinstance(value, Param))
    builtin = cls.name.removeprefix("builtins.") if cls.name.startswith("builtins.") else None
    if builtin is None:
        plain = isinstance(value, (Dict, Seq, Const)) and cls.name.startswith("torch.")
        return False if plain else None
    if isinstance(value, Dict):
        return builtin == "dict"
    if isinstance(value, Seq) and value.kind in ("list", "tuple"):
        return builtin == value.kind
    return type(value.value).__name__ == builtin if isinstance(value, Const) else None


def is_tensor(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torch.is_tensor(x)`."""
    verdict = _is_instance(run, args[0], Ref("torch.Tensor")) if args else None
    return unknown() if verdict is None else Const(verdict)


GROUPS = {
    "_BatchNorm": modules.BATCH_NORMS,
    "_NormBase": modules.BATCH_NORMS | modules.INSTANCE_NORMS,
    "_ConvNd": frozenset(kind for kind in modules.WEIGHTED if kind.startswith("Conv")),
}
"""Private base class of torch.nn -> the classes that derive from it."""


def _is_of_torch(run: Run, value: Instance, name: str) -> bool | None:
    """Whether an object is of a class of torch.nn, None where the class is another library's or not known here."""
    if not name.startswith("torch.nn"):
        return None if not value.library else False
    wanted = name.rsplit(".", 1)[-1]
    kinds = {modules.short(value.cls)} | {b.rsplit(".", 1)[-1] for b in classes.library_bases(value.cls)}
    if wanted in kinds:
        return True
    if wanted == "Module":
        return modules.is_module(run, value)
    if wanted in GROUPS:
        return bool(kinds & GROUPS[wanted])
    return False if modules.is_module(run, value) else None


def zip_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    rows = [objects.concrete(run.interpreter, a) for a in args]
    if all(r is not None for r in rows) and rows:
        return seq([seq(row, "tuple") for row in zip(*(r for r in rows if r is not None), strict=False)], "iterator")
    return seq([seq([objects.element(run.interpreter, a) for a in args], "tuple")], "iterator", open=True)


def enumerate_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    items = objects.concrete(run.interpreter, args[0]) if args else None
    if items is not None:
        return seq([seq([Const(i), item], "tuple") for i, item in enumerate(items)], "iterator")
    item = objects.element(run.interpreter, args[0]) if args else unknown()
    return seq([seq([Number(), item], "tuple")], "iterator", open=True)


def range_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    count = constant(args[0]) if len(args) == 1 else None
    if isinstance(count, int) and count <= 1:
        return seq([Const(0)] * max(count, 0), "range")
    return seq([Number()], "range", open=True)


def listed(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return seq([])
    items = objects.concrete(run.interpreter, args[0])
    if items is not None:
        return seq(items)
    return seq([objects.element(run.interpreter, args[0])], open=True)


def tuple_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    found = listed(run, name, args, kwargs, node)
    return seq(found.items, "tuple", found.open) if isinstance(found, Seq) else found


def dict_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    store: dict[Any, Any] = {}
    if args and isinstance(args[0], Dict):
        store.update(args[0].store)
    elif args:
        pairs = objects.concrete(run.interpreter, args[0])
        for pair in pairs if pairs is not None else [unknown()]:
            key, value = pair.items if isinstance(pair, Seq) and len(pair.items) == 2 else (unknown(), unknown())
            objects.set_item(run.interpreter, Dict(store), key, value, node)
    store.update({k: v for k, v in kwargs.items() if k != "\0rest"})
    if "\0rest" in kwargs:
        store[ANY] = unknown()
    return Dict(store, spot=run.spot(node))


def number(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = constant(args[0]) if args else None
    if isinstance(value, (int, float, str)):
        try:
            return Const(float(value))
        except (ValueError, OverflowError):
            return Number()
    return args[0] if args and isinstance(args[0], Number) else Number()


def integer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = constant(args[0]) if args else None
    return Const(int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else Number()


def length(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    value = args[0] if args else unknown()
    if isinstance(value, Seq) and not value.open:
        return Const(len(value.items))
    if isinstance(value, Dict) and value.kind == "param_state":
        return Const(0) if not value.store else Number()
    return Number()


def getattr_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    named = args[1] if len(args) > 1 else unknown()
    if isinstance(named, Choice):
        return choice(getattr_(run, name, [args[0], option, *args[2:]], kwargs, node) for option in named.options)
    attribute = constant(named)
    if isinstance(attribute, str):
        found = objects.get_attribute(run.interpreter, args[0], attribute, node)
        if isinstance(found, Bound) and len(args) > 2 and isinstance(args[0], Instance):
            return choice([args[2], unknown()])
        return found
    return unknown()


def setattr_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    attribute = constant(args[1]) if len(args) > 2 else None
    if isinstance(attribute, str):
        objects.set_attribute(run.interpreter, args[0], attribute, args[2], node)
    elif len(args) > 2:
        modules.escape(run, args[0])
    return NONE


def sum_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if not args:
        return unknown()
    item = objects.element(run.interpreter, args[0])
    tensor = operands.as_tensor(run, item)
    return (
        tensor
        if isinstance(tensor, Tensor)
        else Number()
        if isinstance(item, (Const, Number))
        else unknown(*operands.marks_of([item]) & operands.KEPT)
    )


def extreme(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    values = [constant(a) for a in args]
    if len(values) > 1 and all(isinstance(v, (int, float)) for v in values):
        return args[0] if len(set(values)) == 1 else Number()
    return Number()


def same(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return args[0] if args else unknown()


def next_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return objects.element(run.interpreter, args[0]) if args else unknown()


def filter_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    items = objects.concrete(run.interpreter, args[1])
    kept: list[Value] = []
    open_ = items is None
    for item in items if items is not None else [objects.element(run.interpreter, args[1])]:
        verdict = truth(calls.call(run.interpreter, args[0], [item], {}, node))
        if verdict is not False:
            kept.append(item)
            open_ = open_ or verdict is None
    return seq(kept, "iterator", open_)


def map_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if len(args) != 2:
        return unknown()
    items = objects.concrete(run.interpreter, args[1])
    found = [
        calls.call(run.interpreter, args[0], [item], {}, node)
        for item in (items if items is not None else [objects.element(run.interpreter, args[1])])
    ]
    return seq(found, "iterator", items is None)


def nothing(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return NONE


def string(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    given = args[0] if args else None
    value = given.store.get("\0path") if isinstance(given, Instance) else constant(given)
    return Const(str(value)) if isinstance(value, (str, int)) else unknown("string")


def spawned(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`torch.multiprocessing.spawn(work, args)` calls `work(rank, *args)` in each process."""
    work = args[0] if args else kwargs.get("fn", unknown())
    given = args[1] if len(args) > 1 else kwargs.get("args", seq([]))
    _called(run, work, [Number()], given, {}, node)
    return unknown()


def process(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Process(target=work, args=…)`, `Thread(…)`: it runs once it is started, which nobody leaves out."""
    named = kwargs.get("kwargs")
    _called(run, kwargs.get("target", unknown()), [], kwargs.get("args", seq([])), named, node)
    return unknown()


def _called(run: Run, work: Value, front: list[Value], given: Value, named: Any, node: Any) -> None:
    items = objects.concrete(run.interpreter, given)
    known = {k: v for k, v in named.store.items() if isinstance(k, str)} if isinstance(named, Dict) else {}
    rest = items if items is not None else [Seq({"items": (unknown(),), "open": True}, "star")]
    if isinstance(work, (Function, Class, Instance)):
        calls.call(run.interpreter, work, [*front, *rest], known, node)


def executor(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(Ref("concurrent.futures.Executor"))


def executor_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`submit(work, *args)` calls it."""
    if name == "submit" and args:
        calls.call(run.interpreter, args[0], args[1:], kwargs, node)
    return map_(run, name, args, {}, node) if name == "map" else unknown()


def environment(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`os.environ.get("DTYPE", "bfloat16")`: the default, where it names a low dtype."""
    return command_lines.unless_told_otherwise(args[1] if len(args) > 1 else kwargs.get("default", NONE))


def evaluated(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`eval("torch.bfloat16")` of a known dotted name."""
    first, *rest = str(constant(args[0]) if args else "").split(".")
    found = run.interpreter.scope.find(first)
    if found is None or not all(part.isidentifier() for part in rest):
        return unknown()
    for part in rest:
        found = objects.get_attribute(run.interpreter, found, part, node)
    return found


def bool_(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    known = truth(args[0]) if args else False
    return unknown() if known is None else Const(known)


def other(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """Any other builtin; a method of one, such as `dict.fromkeys`, is a call of which nothing is known."""
    if name.count(".") > 1:
        return opaque.result(run, [*args, *kwargs.values()], node)
    return unknown(*(operands.marks_of(args) & operands.KEPT))


METHODS: Mapping[str, Method] = {"concurrent.futures.Executor": executor_method}

CALLS: Mapping[str, Call] = {
    "functools.partial": partial,
    "collections.defaultdict": default_dict,
    "types.SimpleNamespace": namespace,
    "argparse.Namespace": namespace,
    "math.*": arithmetic,
    "builtins.isinstance": isinstance_,
    "torch.is_tensor": is_tensor,
    "builtins.zip": zip_,
    "builtins.enumerate": enumerate_,
    "builtins.range": range_,
    "builtins.list": listed,
    "builtins.sorted": listed,
    "builtins.tuple": tuple_,
    "builtins.reversed": listed,
    "builtins.set": listed,
    "builtins.dict": dict_,
    "builtins.float": number,
    "builtins.int": integer,
    "builtins.round": integer,
    "builtins.len": length,
    "builtins.getattr": getattr_,
    "builtins.setattr": setattr_,
    "builtins.sum": sum_,
    "builtins.max": extreme,
    "builtins.min": extreme,
    "builtins.abs": same,
    "builtins.iter": same,
    "builtins.next": next_,
    "builtins.filter": filter_,
    "builtins.map": map_,
    "builtins.print": nothing,
    "builtins.str": string,
    "builtins.bool": bool_,
    "builtins.eval": evaluated,
    "os.environ.get": environment,
    "os.getenv": environment,
    **dict.fromkeys(("torch.multiprocessing.spawn", "torch.multiprocessing.spawn.spawn"), spawned),
    **dict.fromkeys((f"{name}.Process" for name in ("multiprocessing", "torch.multiprocessing")), process),
    "threading.Thread": process,
    "concurrent.futures.ThreadPoolExecutor": executor,
    "concurrent.futures.ProcessPoolExecutor": executor,
    "builtins.*": other,
}
