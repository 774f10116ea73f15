"""skorch: an estimator builds its optimizer over the module that it is given, in whichever dtype that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language import calls
from precaudit.static.language.values import Class, Instance, Ref, Value, seq, unknown
from precaudit.static.overlays import Call, Method, others
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

SKORCH = framework("skorch")
NAMES = [
    f"skorch{inner}.{name}"
    for inner in ("", ".net", ".classifier", ".regressor")
    for name in SKORCH.named("estimators")
]


def estimator(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`NeuralNetClassifier(module, optimizer=torch.optim.AdamW, module__width=32)`."""
    run.met("skorch")
    given = {"module": args[0] if args else kwargs.get("module", unknown())}
    return Instance(Ref(name), {**given, **{f"\0{key}": value for key, value in kwargs.items()}, "\0node": node})


def method(run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`fit` makes the module where a class was given, and the optimizer; what it returns is the estimator."""
    if name in SKORCH.named("trains"):
        run.training.trained = run.training.updated = True
        _build(run, receiver)
        return receiver
    return unknown()


def _build(run: Run, receiver: Instance) -> None:
    module, node = receiver.store["module"], receiver.store["\0node"]
    if isinstance(module, Class):
        module = calls.call(run.interpreter, module, [], _of(receiver, "module"), node)
    chosen = receiver.store.get("\0optimizer", Ref("torch.optim.SGD"))
    if not modules.is_module(run, module) or "\0\0rest" in receiver.store:
        return
    parameters = [parameter for _, parameter in modules.parameters(run, module)]
    calls.call(run.interpreter, chosen, [seq(parameters, "list")], _of(receiver, "optimizer"), node)


def _of(receiver: Instance, what: str) -> dict[str, Value]:
    """`module__width=32` is `width=32` of the module."""
    front = f"\0{what}__"
    return {key.removeprefix(front): value for key, value in receiver.store.items() if str(key).startswith(front)}


CALLS: Mapping[str, Call] = {"skorch.*": others.harmless, **dict.fromkeys(NAMES, estimator)}
METHODS: Mapping[str, Method] = dict.fromkeys(NAMES, method)
