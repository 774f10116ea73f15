"""PEFT: adapters on a base that is frozen, and the preparation of a k-bit base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind
from precaudit.static.language.values import Const, Opaque, Value, is_low, truth, unknown
from precaudit.static.overlays import Call, Method, bitsandbytes
from precaudit.static.overlays.torch import modules

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

WIDE = frozenset({"float32"})


def prepare(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`prepare_model_for_kbit_training(model)` gives back the model."""
    model = args[0] if args else kwargs.get("model", unknown())
    if isinstance(model, Opaque):
        run.interpreter.heap.put(model.store, "\0cared", True)
        bitsandbytes.learns(run, model)
    return model


def adapters(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`get_peft_model(model, config)`: the base is frozen, low adapters are made float32 unless that is refused."""
    run.met("peft")
    model = args[0] if args else kwargs.get("model", unknown())
    if not isinstance(model, Opaque):
        modules.escape(run, model)
        return unknown()
    quantised = bool(model.store.get("\0kbit"))
    if quantised and not model.store.get("\0cared"):
        run.training.unprepared.append((run.spot(node), model.store.get("\0loaded")))
    bitsandbytes.learns(run, model)
    base = None if quantised else model.store.get("dtype")
    kept = kwargs.get("autocast_adapter_dtype", args[4] if len(args) > 4 else Const(True))
    dtype = base if truth(kept) is False and "\0rest" not in kwargs else None if base is None else WIDE
    if "\0rest" in kwargs or truth(kept) is None:
        dtype = None
    spot = run.spot(node) if is_low(dtype) else None
    store = {"dtype": dtype, "requires_grad": True, "spot": spot, "\0adapters": True, "\0base": base}
    return Opaque(store)


def add_adapter(run: Run, receiver: Value, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`model.add_adapter(config)` of transformers: as get_peft_model, on the model itself."""
    bitsandbytes.learns(run, receiver)
    if isinstance(receiver, Opaque):
        made = adapters(run, name, [receiver], {}, node)
        for key, value in made.store.items() if isinstance(made, Opaque) else ():
            run.interpreter.heap.put(receiver.store, key, value)
    else:
        modules.escape(run, receiver)
    return unknown()


def finish(run: Run) -> None:
    """A k-bit base that nothing prepared matters only where the file trains."""
    held = run.training
    for spot, loaded in held.unprepared if held.trained and not held.trainer_prepares else ():
        because = ("its base is loaded in k bits here", loaded)
        run.facts.add(Kind.CALL, spot, "", None, because, api="prepare_model_for_kbit_training", called=False)


CALLS: Mapping[str, Call] = {
    "peft.prepare_model_for_kbit_training": prepare,
    "peft.get_peft_model": adapters,
}
ON_UNKNOWN: Mapping[str, Method] = {"add_adapter": add_adapter}
