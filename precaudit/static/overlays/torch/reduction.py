"""Gradients that are reduced between ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language import calls
from precaudit.static.language.values import (
    Class,
    Function,
    Instance,
    Ref,
    Spot,
    Tensor,
    Value,
    is_low,
    seq,
    unknown,
)
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


COMPRESSED = {"fp16_compress": "float16", "bf16_compress": "bfloat16"}
"""What the names of torch's compressing hooks, and of its wrappers around other hooks, begin with."""


def comm_hook(run: Run, values: list[Value], node: Any) -> None:
    """`model.register_comm_hook(state, hook)`: torch's own hooks by name, others by running them."""
    for value in values:
        if isinstance(value, Function) or (isinstance(value, Instance) and isinstance(value.cls, Class)):
            bucket = Instance(Ref(BUCKET))
            calls.call(run.interpreter, value, [unknown(), bucket], {}, node)
            continue
        name = value.name.rsplit(".", 1)[-1] if isinstance(value, Ref) else ""
        dtype = next((dtype for front, dtype in COMPRESSED.items() if name.startswith(front)), None)
        if dtype:
            run.facts.add(
                Kind.HOLDS, run.spot(node), dtype, Role.GRADIENT_REDUCTION, None, name, chosen="explicit", by="hook"
            )


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


def mixed_precision(run: Run, args: list[Value], kwargs: dict[str, Value], spot: Spot) -> None:
    """FSDP's MixedPrecision and MixedPrecisionPolicy: an unset reduce_dtype is param_dtype."""
    param = operands.dtype_argument(run, kwargs.get("param_dtype", args[0] if args else None))
    reduce = operands.dtype_argument(run, kwargs.get("reduce_dtype", args[1] if len(args) > 1 else None))
    dtype = operands.names(reduce) if reduce is not None else operands.names(param)
    if is_low(dtype):
        run.facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.GRADIENT_REDUCTION,
            None,
            "reduce_dtype is not set, so param_dtype is used" if reduce is None else "",
            chosen="default" if reduce is None else "explicit",
        )


def reduced(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
    """A collective of torch.distributed: gradients that are summed between ranks in low precision."""
    if not name.startswith(("all_reduce", "reduce", "_reduce_scatter")):
        return
    values = [operands.as_tensor(run, a) for a in (*args[:2], *kwargs.values())]
    for value in values:
        if isinstance(value, Tensor) and value.low and "gradient" in value.marks:
            run.facts.add(
                Kind.HOLDS,
                run.spot(node),
                value.dtype,
                Role.GRADIENT_REDUCTION,
                None,
                name,
                chosen="explicit",
            )
            return
