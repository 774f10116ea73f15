"""Loss scaling: what a GradScaler gives back, and what of the gradients it is to be told of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precaudit.static.language.values import (
    Const,
    Instance,
    Number,
    Opaque,
    Optimizer,
    Ref,
    Scaler,
    StateDict,
    Tensor,
    Value,
    options,
    truth,
    unknown,
)
from precaudit.static.overlays.events import tell
from precaudit.static.overlays.torch import handwritten, operands, optimizers

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def scaler(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`GradScaler(...)`."""
    given = kwargs.get("enabled")
    enabled = None if "\0rest" in kwargs else True if given is None else truth(given)
    made = Scaler({"sharded": name.endswith("ShardedGradScaler")}, enabled, run.spot(node))
    run.training.scalers.append(made)
    run.training.saw_scaler |= enabled is not False
    tell(run, "GradScaler", [Ref(name), *args], node, made, kwargs)
    return made


def scaler_method(run: Run, made: Scaler, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """A method of a GradScaler."""
    if name == "scale":
        return _scale(run, made, args, node)
    optimizer = args[0] if args else unknown()
    if name == "unscale_":
        tell(run, "scaler.unscale_", [made, optimizer], node)
    elif name == "step":
        _step(run, made, optimizer, node)
    elif name == "update":
        tell(run, "scaler.update", [made, *args, *kwargs.values()], node)
    elif name == "get_scale":
        return Number(from_scale=True)
    elif name == "state_dict":
        tell(run, "scaler.state_dict", [made], node)
        return StateDict("scaler")
    elif name == "is_enabled":
        return Const(made.enabled) if made.enabled is not None else unknown()
    return unknown()


def looked_into(run: Run, made: Scaler, name: str, node: Any) -> None:
    """What it keeps of each optimizer has no public name: who reads or writes it changes it by hand."""
    if name == "_per_optimizer_states":
        tell(run, "scaler.reset", [made], node)


def _scale(run: Run, made: Scaler, args: list[Value], node: Any) -> Value:
    loss = operands.as_tensor(run, args[0]) if args else unknown()
    if made.enabled is False:
        return loss
    tell(run, "scaler.scale", [made, loss], node)
    return scaled(loss, made)


def scaled(loss: Value, by: Scaler | Opaque) -> Value:
    """A loss that carries this scaler's scale."""
    marks = operands.marks_of([loss]) | {"scaled", f"scaler:{id(by.store)}"}
    return replace(loss, marks=marks) if isinstance(loss, Tensor) else Opaque(marks=marks)


def _step(run: Run, made: Scaler, optimizer: Value, node: Any) -> None:
    run.training.stepped_scalers.add(id(made.store))
    tell(run, "scaler.steps", [made, optimizer], node)
    for option in options(optimizer):
        optimizers.stepped(run, option, node)
        if isinstance(option, Instance):
            handwritten.step(run, option, node)
    tell(run, "scaler.step", [made, optimizer], node)


def stepped_parameters(run: Run, optimizer: Value) -> list[Value]:
    """The parameters whose gradients a scaler unscales before it steps this."""
    found: list[Value] = []
    for option in options(optimizer):
        if isinstance(option, Optimizer):
            found = list(option.store["params"])
        elif isinstance(option, Instance) and "param_groups" in option.store:
            found = optimizers.collect(run, option.store["param_groups"])
    return found


def clipped(run: Run, limit: Value | None, node: Any) -> None:
    """Gradients are clipped to a limit, or by something of their own size."""
    tell(run, "clip_grad", [limit] if limit is not None else [], node)


def gradients_cleared(run: Run, node: Any) -> None:
    """`zero_grad()` or `p.grad = None`."""
    tell(run, "zero_grad", [], node)


def gradient_replaced(run: Run, value: Value, node: Any) -> None:
    """Gradients were replaced: by a share of themselves that depends on their size, or by anything else."""
    if "ratio" in operands.marks_of([operands.as_tensor(run, value)]):
        clipped(run, None, node)
    else:
        gradient_written(run, node)


def gradient_written(run: Run, node: Any) -> None:
    """Gradients were changed in place by hand, perhaps to unscale them."""
    tell(run, "gradient.changed", [], node)
