"""Gradients that are reduced between ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.static.language import calls
from precaudit.static.language.values import (
    Class,
    Function,
    Instance,
    Ref,
    Tensor,
    Value,
    seq,
    unknown,
)
from precaudit.static.overlays.events import tell

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def comm_hook(run: Run, values: list[Value], node: Any) -> None:
    """`model.register_comm_hook(state, hook)`: torch's own hooks are known by name, others by running them."""
    tell(run, "comm_hook", values, node)
    for value in values:
        if isinstance(value, Function) or (isinstance(value, Instance) and isinstance(value.cls, Class)):
            calls.call(run.interpreter, value, [unknown(), Instance(Ref(BUCKET))], {}, node)


BUCKET = "torch.distributed.GradBucket"


def wrapped_hook(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`fp16_compress_wrapper(hook)`: the hook of that name."""
    return Ref(name)


def bucket_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    """What a communication hook reads off the bucket that it is called with."""
    if name in ("buffer", "gradients"):
        gradient = Tensor(None, run.spot(node), "grad", frozenset({"gradient"}))
        return gradient if name == "buffer" else seq([gradient], open=True)
    return unknown()
