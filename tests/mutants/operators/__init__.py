"""The ways to break a program: one file for each family, in each a tuple `OPERATORS`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

Files = Mapping[str, str]
"""The files of a program: path -> text."""


@dataclass(frozen=True)
class Edit:
    """Code that has the shape `find` becomes `put`: at one place, or wherever it stands, if anywhere (`everywhere`)."""

    find: str
    put: str
    everywhere: bool = False


@dataclass(frozen=True)
class Operator:
    """One mistake: where it can be made, which rules it may break, and who can see it.

    `breaks` are the rules of which one must be reported; `beside` those that may be reported too. A finding is located
    where it stands near a changed line, or near a line that matches `near`. `names` are words that what a hole stands
    for must contain. `raises`: words of the exception with which the mistake may end the program. `shows`: aspects of
    a plain run of which one must differ from the parent's; any of them where nothing is said.
    """

    name: str
    breaks: tuple[str, ...]
    edits: tuple[Edit, ...] = ()
    beside: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ("check", "trace")
    near: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    raises: str = ""
    shows: tuple[str, ...] = ()
    family: str = ""
    transform: Callable[[Files], Iterator[Files]] | None = None
    """In place of edits: what no shape can say."""


def family(word: str, *operators: Operator) -> tuple[Operator, ...]:
    """These operators, as members of one family."""
    return tuple(Operator(**{**vars(operator), "family": word}) for operator in operators)


def rules(text: str) -> tuple[str, ...]:
    """`("PA101", "PA301")` of `"101 301"`."""
    return tuple(f"PA{number}" for number in text.split())


def load(package: str = __name__) -> dict[str, Operator]:
    """Every operator by its name, found in the modules of a package."""
    found: dict[str, Operator] = {}
    folder = importlib.import_module(package).__path__
    for module in sorted(m.name for m in pkgutil.iter_modules(folder)):
        for operator in importlib.import_module(f"{package}.{module}").OPERATORS:
            assert operator.name not in found, f"two operators are called {operator.name}"
            found[operator.name] = operator
    return found
