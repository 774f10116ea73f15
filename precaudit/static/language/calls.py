"""Calls of functions and classes of the code under check: arguments bound, bodies run, paths joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from precaudit.static.language import classes
from precaudit.static.language.heap import Store
from precaudit.static.language.scopes import Frame, Scope
from precaudit.static.language.values import (
    ANY,
    NONE,
    Bound,
    Choice,
    Class,
    Dict,
    Function,
    Instance,
    Number,
    Opaque,
    Tensor,
    Unread,
    Value,
    choice,
    join_all,
    seq,
    unknown,
)

if TYPE_CHECKING:
    from precaudit.static.language.interpreter import Interpreter

MAX_DEPTH = 24
MAX_SAME = 6


def call(run: Interpreter, function: Value, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """What a call returns, with its effects."""
    if isinstance(function, Unread) and run.library.worth_reading([*args, *kwargs.values()]):
        function = function.read() or function
    if isinstance(function, Choice):
        if all(isinstance(o, Bound) and isinstance(o.receiver, (Tensor, Opaque)) for o in function.options):
            return _of_one_tensor(run, function.options, args, kwargs, node)
        return choice(call(run, option, args, kwargs, node) for option in function.options)
    if isinstance(function, Function):
        return call_function(run, function, args, kwargs, node)
    if isinstance(function, Class):
        return call_class(run, function, args, kwargs, node)
    if isinstance(function, Instance) and isinstance(function.cls, Class):
        return call_instance(run, function, args, kwargs, node)
    return run.library.call(function, args, kwargs, node)


def _of_one_tensor(
    run: Interpreter, methods: tuple[Value, ...], args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """A method of a tensor that is one of several: it is called once, whichever that is."""
    mark, outcomes, results = run.heap.mark(), [], []
    for method in methods:
        results.append(call(run, method, args, kwargs, node))
        outcomes.append(run.heap.changes(mark))
        run.heap.undo(mark)
    run.heap.merge(outcomes)
    return choice(results)


def call_instance(run: Interpreter, target: Instance, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    for name in ("__call__", "forward"):
        method = classes.find_method(target.cls, name)
        if method is not None:
            return call(run, classes.bind(method[0], target, method[1]), args, kwargs, node)
    return run.library.call_unknown_module(target, args, kwargs, node)


def call_class(run: Interpreter, cls: Class, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    if run.library.is_autograd_function(cls):
        return unknown()
    found = run.library.looked_up(cls, args, kwargs)
    if found is not None:
        return found
    instance = Instance(cls)
    init = classes.find_method(cls, "__init__")
    if init is not None:
        call(run, classes.bind(init[0], instance, init[1]), args, kwargs, node)
    elif cls.decorators or classes.library_bases(cls):
        _fields(run, cls, instance, args, kwargs, node)
        run.library.init_library_base(instance, args, kwargs, node)
    post = classes.find_method(cls, "__post_init__")
    if post is not None:
        call(run, classes.bind(post[0], instance, post[1]), [], {}, node)
    return instance


def _fields(
    run: Interpreter, cls: Class, instance: Instance, args: list[Value], kwargs: dict[str, Value], node: Any
) -> None:
    """A dataclass's generated `__init__`. What is behind a `**` of which nothing is known may be any field."""
    names = classes.fields(cls)
    if not names:
        names = [
            k for k, v in cls.store.items() if isinstance(k, str) and k[:1] != "\0" and not isinstance(v, Function)
        ]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    rest = given.pop("\0rest", None)
    for owner in reversed(classes.mro(cls)):
        for name in owner.store.get("\0annotations", ()) if rest is None else ():
            made = run.library.field_default(owner.store[name], node) if name in owner.store else None
            if name not in given and made is not None and made is not owner.store[name]:
                given[name] = made
    for name in names if rest is not None else ():
        given.setdefault(name, unknown())
    for name, value in given.items():
        run.heap.put(instance.store, name, value)


def call_function(
    run: Interpreter,
    function: Function,
    args: list[Value],
    kwargs: dict[str, Value],
    node: Any,
    on_yield: Callable[[], None] | None = None,
) -> Value:
    """Runs a function's body with these arguments and joins what its paths return."""
    definition = function.node
    if isinstance(definition, cst.Lambda):
        return _call_lambda(run, function, args, kwargs)
    if not run.matters(function) and node is not definition:
        return unknown()
    run.called.add(definition)
    wrapper = _decorated(run, function, node) if function.decorators and node is not definition else None
    if wrapper is not None:
        given = args if function.receiver is None else [function.receiver, *args]
        return call_function(run, wrapper, given, kwargs, node)
    context = run.library.function_context(function)
    if context == "contextmanager" and on_yield is None:
        held = dict(function.defaults)
        held["\0args"], held["\0kwargs"] = seq(args), Dict(dict(kwargs))
        return Function(
            definition, function.scope, held, function.owner, function.receiver, function.decorators, "manager"
        )
    same = sum(frame.function is definition for frame in run.frames)
    if len(run.frames) >= MAX_DEPTH or same >= MAX_SAME:
        return unknown()
    name = definition.name.value
    owner = function.owner.name + "." if function.owner is not None else ""
    prefix = function.scope.function
    qualified = f"{prefix}.{name}" if prefix and not owner else owner + name
    store: Store = {}
    outer = run.scope
    run.scope = Scope(store, function.scope, function.scope.source, qualified)
    if isinstance(definition.returns, cst.Annotation):
        store["\0returns"] = definition.returns
    _bind_arguments(run, function, args, kwargs, store, bool(node is definition))
    frame = Frame(definition, run.heap.mark(), function.owner, function.receiver)
    frame.on_yield = on_yield
    # A `try` around a call asks nothing of the versions that what it calls is written for.
    guards, run.guards = run.guards, [guard for guard in run.guards if guard != "try"]
    splits = dict(run.splits)
    run.frames.append(frame)
    depth = len(run.contexts)
    if isinstance(context, Value):
        run.contexts.append(context)
    try:
        alive = run.block(function.scope.source.body(definition))
        return _leave(run, frame, alive)
    finally:
        del run.contexts[depth:]
        run.frames.pop()
        run.guards = guards
        _forget_locals(run, store, splits)
        run.scope = outer


def _forget_locals(run: Interpreter, store: Store, before: dict[Any, Any]) -> None:
    """Forgets what branches wrote to the names of a call that has ended."""
    for condition, (keys, splits) in list(run.splits.items()):
        if before.get(condition, (keys, ()))[1] is not splits:
            kept = [split for split in splits if split.store is not store]
            if kept:
                run.splits[condition] = keys, kept
            else:
                del run.splits[condition]


def _decorated(run: Interpreter, function: Function, node: Any) -> Function | None:
    """What decorators that the code under check defines make of a function, None where they keep it."""
    mine = [d for d in function.decorators if isinstance(d, Function)]
    if not mine or len(run.frames) >= MAX_DEPTH:
        return None
    kept = tuple(d for d in function.decorators if not isinstance(d, Function))
    bare = replace(function, receiver=None, decorators=kept)
    made = bare
    for decorator in reversed(mine):
        wrapped = call_function(run, decorator, [made], {}, node)
        if not isinstance(wrapped, Function):
            return None
        made = wrapped
    return None if made is bare else made


def _leave(run: Interpreter, frame: Frame, alive: bool) -> Value:
    exits = frame.exits
    if alive:
        exits.append((run.heap.changes(frame.mark), NONE))
    if not exits:
        return unknown()
    if len(exits) > 1 or not alive:
        run.heap.undo(frame.mark)
        run.heap.merge([changes for changes, _ in exits])
    if frame.yields:
        return seq([join_all(frame.yields)], "iterator", open=True)
    return join_all([value for _, value in exits])


def _call_lambda(run: Interpreter, function: Function, args: list[Value], kwargs: dict[str, Value]) -> Value:
    store: Store = {}
    outer = run.scope
    if len(run.frames) >= MAX_DEPTH or run.budget < 0:
        return unknown()
    run.budget -= 1
    run.scope = Scope(store, function.scope, function.scope.source, function.scope.function)
    _bind_arguments(run, function, args, kwargs, store, False)
    run.frames.append(Frame(None, run.heap.mark()))
    try:
        return run.eval(function.node.body)
    finally:
        run.frames.pop()
        run.scope = outer


def _bind_arguments(
    run: Interpreter, function: Function, args: list[Value], kwargs: dict[str, Value], store: Store, uncalled: bool
) -> None:
    params = function.node.params
    rest = list(args)
    if function.receiver is not None:
        rest.insert(0, function.receiver)
    named = dict(kwargs)
    perhaps_given = "\0rest" in named
    for param in (*params.posonly_params, *params.params):
        name = param.name.value
        if rest:
            store[name] = rest.pop(0)
        elif name in named:
            store[name] = named.pop(name)
        else:
            store[name] = _missing_argument(run, function, param, perhaps_given)
    for param in params.kwonly_params:
        name = param.name.value
        store[name] = named.pop(name) if name in named else _missing_argument(run, function, param, perhaps_given)
    if isinstance(params.star_arg, cst.Param):
        store[params.star_arg.name.value] = seq(rest, "tuple", open=uncalled)
    if params.star_kwarg is not None:
        store[params.star_kwarg.name.value] = Dict({**named, **({ANY: unknown()} if uncalled else {})})


def _missing_argument(run: Interpreter, function: Function, param: cst.Param, perhaps_given: bool) -> Value:
    name = param.name.value
    if perhaps_given:
        return unknown()
    handed = run.library.argument(function, name) if function.decorators else None
    if handed is not None:
        return handed
    if name in function.defaults:
        return function.defaults[name]
    annotation = param.annotation.annotation if param.annotation is not None else None
    if isinstance(annotation, cst.Name) and annotation.value in ("int", "float", "bool"):
        return Number() if annotation.value != "bool" else unknown()
    return unknown()


def defaults(run: Interpreter, params: cst.Parameters) -> dict[str, Value]:
    found = {}
    for param in (*params.posonly_params, *params.params, *params.kwonly_params):
        if param.default is not None:
            found[param.name.value] = run.eval(param.default)
    return found
