"""Optimizers of other packages: what they hold and where they keep its state, by `frameworks/optimizers.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Instance, Optimizer, Ref, Value, constant, is_low, seq, truth, unknown
from precaudit.static.overlays import Call, others
from precaudit.static.overlays.torch import modules, operands, optimizers

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

WORDS = framework("optimizers").words


@cache
def row(name: str) -> Mapping[str, Any]:
    """What is written of the optimizer with this dotted name."""
    short = f"{name.partition('.')[0]}.{name.rpartition('.')[2]}".lower()
    fits = (r for r in WORDS["optimizers"] if any(fnmatchcase(short, pattern.lower()) for pattern in r["names"]))
    found: Mapping[str, Any] = next(fits)
    return found


def optimizer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A class of such a package; its functions, and classes that are no optimizers, do whatever they do."""
    known = row(name)
    if not name.rpartition(".")[2].lstrip("_")[:1].isupper() or known["state"] == "no optimizer":
        return others.unfamiliar(run, name, args, kwargs, node)
    made = optimizers.optimizer(run, name, args, kwargs, node)
    if isinstance(made, Optimizer):
        made.store.update({"adaptive": "eps" in kwargs, "keeps": known["state"]})
        asked = [kwargs[known[key]] for key in ("masters", "rounds") if known.get(key) in kwargs]
        if known["state"] == "engine" or "\0rest" in kwargs or any(truth(value) is not False for value in asked):
            made.store["elsewhere"] = True
        if "momentum" in known and "\0rest" not in kwargs:
            _own_momentum(run, made, known["momentum"], kwargs, node)
    return made


def _own_momentum(run: Run, made: Optimizer, known: Mapping[str, str], kwargs: dict[str, Value], node: Any) -> None:
    """Momentum in a dtype of its own, whatever the parameters' is."""
    argument = known["argument"]
    given = operands.dtype_argument(run, kwargs.get(argument))
    dtype = operands.names(given) if argument in kwargs else frozenset({known["default"]})
    if is_low(dtype):
        chosen = "explicit" if argument in kwargs else "framework"
        by = argument if argument in kwargs else f"{argument}, its own default"
        detail = f"{made.store['cls']} keeps its momentum in {by}"
        run.facts.add(
            Kind.HOLDS, run.spot(node), dtype, Role.OPTIMIZER_STATE, None, detail, what="moment", chosen=chosen
        )


def factory(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`create_optimizer_v2(model, opt="adamw")`: an optimizer over the model's parameters, by its name."""
    known = WORDS["factories"][name]
    model = args[known["model"]] if args else unknown()
    cls = constant(kwargs.get(known["name"], args[1] if len(args) > 1 else None))
    if not isinstance(cls, str):
        return others.unfamiliar(run, name, args, kwargs, node)
    given = model
    if isinstance(model, Instance):
        given = seq([param for _, param in modules.parameters(run, model)])
    rest = {key: value for key, value in kwargs.items() if key != known["name"]}
    return optimizer(run, f"{name.rpartition('.')[0]}.{cls.title()}", [given], rest, node)


def by_name(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`load_optimizer("adan")` gives the class."""
    cls = constant(args[0] if args else kwargs.get("optimizer"))
    return Ref(f"pytorch_optimizer.{cls.title()}") if isinstance(cls, str) else unknown()


CALLS: Mapping[str, Call] = {
    **{f"{package}.*": optimizer for package in WORDS["calls"]["packages"]},
    **dict.fromkeys(WORDS["calls"]["single"], optimizer),
    **dict.fromkeys(WORDS["factories"], factory),
    "pytorch_optimizer.load_optimizer": by_name,
}
