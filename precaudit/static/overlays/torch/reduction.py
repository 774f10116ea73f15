"""Gradients that are reduced between ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import (
    Ref,
    Spot,
    Tensor,
    Value,
    is_low,
)
from precaudit.static.overlays.torch import operands

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def comm_hook(torch: Torch, values: list[Value], node: Any) -> None:
    """`model.register_comm_hook(state, hook)`."""
    for value in values:
        if isinstance(value, Ref):
            name = value.name.rsplit(".", 1)[-1]
            dtype = {"fp16_compress_hook": "float16", "bf16_compress_hook": "bfloat16"}.get(name)
            if dtype:
                torch.facts.add(
                    Kind.HOLDS,
                    torch.spot(node),
                    dtype,
                    Role.GRADIENT_REDUCTION,
                    None,
                    name,
                    chosen="explicit",
                    by="hook",
                )


def mixed_precision(torch: Torch, args: list[Value], kwargs: dict[str, Value], spot: Spot) -> None:
    """FSDP's MixedPrecision and MixedPrecisionPolicy: an unset reduce_dtype is param_dtype."""
    param = operands.dtype_argument(torch, kwargs.get("param_dtype", args[0] if args else None))
    reduce = operands.dtype_argument(torch, kwargs.get("reduce_dtype", args[1] if len(args) > 1 else None))
    dtype = operands.names(reduce) if reduce is not None else operands.names(param)
    if is_low(dtype):
        torch.facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.GRADIENT_REDUCTION,
            None,
            "reduce_dtype is not set, so param_dtype is used" if reduce is None else "",
            chosen="default" if reduce is None else "explicit",
        )


def reduced(torch: Torch, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> None:
    """A collective of torch.distributed: gradients that are summed between ranks in low precision."""
    if not name.startswith(("all_reduce", "reduce", "_reduce_scatter")):
        return
    values = [operands.as_tensor(torch, a) for a in (*args[:2], *kwargs.values())]
    for value in values:
        if isinstance(value, Tensor) and value.low and "gradient" in value.marks:
            torch.facts.add(
                Kind.HOLDS,
                torch.spot(node),
                value.dtype,
                Role.GRADIENT_REDUCTION,
                None,
                name,
                chosen="explicit",
            )
            return
