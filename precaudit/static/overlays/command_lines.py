"""Values from a command line: argparse, click, typer, and parsers that fill a dataclass, as tyro and HF's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls
from precaudit.static.language.values import (
    ANY,
    NONE,
    Class,
    Const,
    Dict,
    DType,
    Function,
    Instance,
    Number,
    Ref,
    Seq,
    Value,
    choice,
    constant,
    join,
    seq,
    unknown,
)
from precaudit.static.overlays import Call, Method
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

CONFIGS = (".yaml", ".yml", ".json", ".toml")
"""How a config is called that is read unless the user names another."""
CLICK, TYPER, CHOICES = "click.option", "typer.Option", "click.Choice"


def parser(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    arguments: dict[Any, Any] = {}
    parents = kwargs.get("parents")
    for parent in parents.items if isinstance(parents, Seq) else ():
        if isinstance(parent, Instance) and "\0arguments" in parent.store:
            arguments.update(parent.store["\0arguments"].store)
    return Instance(Ref("argparse.ArgumentParser"), {"\0arguments": Dict(arguments)})


def parser_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """argparse: `add_argument` remembers what a value can be, `parse_args` gives an object with these values."""
    arguments: Dict = receiver.store["\0arguments"]
    if name == "add_argument":
        flags = [constant(a) for a in args]
        named = [f for f in flags if isinstance(f, str)]
        given = constant(kwargs.get("dest")) or next(
            (f for f in named if f.startswith("--")), named[0] if named else ""
        )
        key = str(given).lstrip("-").replace("-", "_")
        value = possible(run, kwargs, node)
        if key in arguments.store:  # of another subcommand, or another spelling of the same
            value = join(arguments.store[key], value)
        run.interpreter.heap.put(arguments.store, key, value)
        return unknown()
    if name in ("add_argument_group", "add_mutually_exclusive_group", "add_subparsers", "add_parser"):
        return receiver
    if name == "set_defaults":
        for key, value in kwargs.items():
            run.interpreter.heap.put(arguments.store, key, unless_told_otherwise(value))
        return NONE
    if name in ("parse_args", "parse_known_args"):
        made = Instance(Ref("argparse.Namespace"), dict(arguments.store))
        return made if name == "parse_args" else seq([made, unknown()], "tuple")
    return unknown()


def possible(run: Run, kwargs: dict[str, Value], node: Any) -> Value:
    """What an argument can be: one of its choices, or a default that names a low dtype; else nothing is known."""
    known = constants_of(kwargs.get("choices"))
    converted = kwargs.get("type")
    if isinstance(converted, Instance) and converted.library == CHOICES:
        known = constants_of(converted.store["choices"])
    default = kwargs.get("default", NONE)
    action = constant(kwargs.get("action"))
    if action == "store_const" and isinstance(kwargs.get("const"), (DType, Const)):
        return choice([kwargs["const"], default])
    told = unless_told_otherwise(default)
    low = isinstance(told, Const) and told in known  # what runs unless the user says otherwise, whatever else may be
    values = [choice(known)] if known and not low else [told]
    if isinstance(converted, (Function, Class)):
        # A default is converted too where it is a string, as everything from the command line.
        return choice(
            calls.call(run.interpreter, converted, [v], {}, node) if isinstance(v, Const) else v for v in values
        )
    return values[0]


def unless_told_otherwise(default: Value) -> Value:
    """What is known of a default that a user may override: a low dtype, or a config that stands in the project."""
    value = constant(default)
    if isinstance(default, DType):
        return default
    if isinstance(value, str) and (operands.LOW_NAME.fullmatch(value) or value.endswith(CONFIGS)):
        return default
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Number()
    return default if isinstance(default, Instance) and "\0enum" in default.store else unknown()


def constants_of(value: Value | None) -> list[Value]:
    """The constants in a list, tuple, set or dict's keys that is wholly known; empty otherwise."""
    if isinstance(value, Seq) and not value.open and all(isinstance(i, Const) for i in value.items):
        return list(value.items)
    if isinstance(value, Dict) and ANY not in value.store:
        return [Const(key) for key in value.store]
    return []


def built(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`tyro.cli(Config)`: an object of a dataclass, with its defaults unless the command line says otherwise."""
    if args and isinstance(args[0], (Class, Function)):
        return calls.call(run.interpreter, args[0], [], {}, node)
    return unknown()


def dataclass_parser(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`HfArgumentParser((A, B))`."""
    given = args[0] if args else kwargs.get("dataclass_types", unknown())
    held = given.items if isinstance(given, Seq) else (given,)
    return Instance(Ref("transformers.HfArgumentParser"), {"\0classes": held})


def dataclass_parser_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """`parse_args_into_dataclasses()`; of what a file says nothing is known, nor of a library's class."""
    if name != "parse_args_into_dataclasses":
        return unknown()
    made = [
        calls.call(run.interpreter, cls, [], {}, node) if isinstance(cls, Class) else unknown()
        for cls in receiver.store["\0classes"]
    ]
    return seq(made, "tuple")


def click_option(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`@click.option("--dtype", "dtype", default=…)`: a decorator that hands this to the function."""
    names = [str(constant(a)) for a in args if isinstance(a, Const)]
    plain = next((n for n in names if not n.startswith("-")), None)
    long = next((n for n in names if n.startswith("--")), names[0] if names else "")
    key = plain or long.partition("/")[0].lstrip("-").replace("-", "_")
    return Instance(Ref(CLICK), {"\0name": key, "\0value": possible(run, kwargs, node)})


def click_choice(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    return Instance(Ref(CHOICES), {"choices": args[0] if args else kwargs.get("choices", unknown())})


def typer_option(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`dtype: str = typer.Option("bfloat16")`: the default of a parameter."""
    return unless_told_otherwise(args[0] if args else kwargs.get("default", NONE))


def argument(run: Run, function: Function, name: str) -> Value | None:
    """What click hands to a function under this name; None where its options do not say."""
    for decorator in function.decorators:
        if isinstance(decorator, Instance) and decorator.library == CLICK and decorator.store["\0name"] == name:
            found: Value = decorator.store["\0value"]
            return found
    return None


CALLS: Mapping[str, Call] = {
    "argparse.ArgumentParser": parser,
    **dict.fromkeys(("tyro.cli", "simple_parsing.parse", "draccus.parse", "chz.entrypoint"), built),
    "click.option": click_option,
    "click.Choice": click_choice,
    "typer.Option": typer_option,
    "typer.Argument": typer_option,
}
METHODS: Mapping[str, Method] = {
    "argparse.ArgumentParser": parser_method,
    "transformers.HfArgumentParser": dataclass_parser_method,
}
