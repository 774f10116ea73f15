"""The mistakes that a known dtype proves at one operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precaudit.model.vocabulary import FLOATING, Kind, Role, rounds_to
from precaudit.static.language.values import (
    Const,
    Dtypes,
    Spot,
    Tensor,
    Value,
    float_constant,
    is_low,
)
from precaudit.static.overlays.torch import handwritten

if TYPE_CHECKING:
    from precaudit.static.overlays.torch_model import Torch


def constant_overflows(torch: Torch, dtype: Dtypes | None, value: Value, node: Any, op: str) -> None:
    number = float_constant(value)
    if number is None or dtype is None or not is_low(dtype) or op not in ("Add", "Subtract", "Multiply"):
        return
    if all(rounds_to(number, name) == "inf" for name in dtype):
        torch.facts.add(
            Kind.CONSTANT, torch.spot(node), dtype, None, None, f"{number:g} is not finite there", overflows=True
        )


def vanishing_constant(torch: Torch, dtype: Dtypes | None, plain: list[Value], node: Any) -> tuple[float, Spot] | None:
    for value in plain:
        number = float_constant(value)
        if number and is_low(dtype) and dtype and all(rounds_to(number, name) == "zero" for name in dtype):
            return number, torch.spot(node)
    return None


def divides(torch: Torch, name: str, values: list[Value], node: Any) -> None:
    """A tensor is divided in place, or a quotient is added to it."""
    if name in ("div", "addcdiv") and values and isinstance(values[-1], Tensor):
        consumes_vanishing(torch, values[-1], node, "div")


def consumes_vanishing(torch: Torch, tensor: Tensor, node: Any, feeds: str) -> None:
    if tensor.tiny is not None and tensor.low:
        number, spot = tensor.tiny
        if handwritten.current_optimizer(torch) is not None:
            role, because = Role.OPTIMIZER_STATE, ("it is to guard this", torch.spot(node))
            torch.facts.add(Kind.EPS, spot, tensor.dtype, role, because, f"eps={number:g}", rounds_to="zero")
            return
        torch.facts.add(
            Kind.CONSTANT,
            spot,
            tensor.dtype,
            None,
            None,
            f"{number:g} is 0 there",
            overflows=False,
            rounds_to="zero",
            feeds=feeds,
        )


def low_positions(torch: Torch, tensor: Tensor, node: Any) -> None:
    """Positions or timesteps that are low, or were before they were cast up again."""
    was = frozenset(mark.removeprefix("was:") for mark in tensor.marks if mark.startswith("was:"))
    if not tensor.low and not was:
        return
    torch.facts.add(
        Kind.HOLDS,
        tensor.low_at or torch.spot(node),
        tensor.dtype if tensor.low else was,
        Role.POSITIONS,
        ("they feed sin or cos here", torch.spot(node)),
        "positions and frequencies feed sin and cos",
        representable=False,
    )


def half_cast(torch: Torch, spot: Spot | None, dtype: Dtypes | None, region: Spot | None) -> None:
    """A value was cast low by hand inside a region, so that an operation in float32 gets rounded values."""
    if spot is not None and region is not None:
        torch.facts.add(Kind.CAST, spot, dtype, None, ("the region begins here", region), under_autocast=True)


def consumes_recast(torch: Torch, tensor: Tensor) -> None:
    """An operation that autocast runs in float32 reads a value that was cast low by hand just before."""
    region = torch.autocast()
    if tensor.op == "cast" and tensor.low and "recast" in tensor.marks and region is not None:
        half_cast(torch, tensor.spot, tensor.dtype, region.spot)


def low_schedule(torch: Torch, tensor: Tensor, result: Tensor, node: Any) -> None:
    """1 - beta of a noise schedule stands within 2**-8 of 1, where bfloat16 has two values."""
    torch.facts.add(
        Kind.HOLDS,
        tensor.low_at or torch.spot(node),
        result.dtype,
        Role.POSITIONS,
        ("it is multiplied up or its root is taken here", torch.spot(node)),
        "a noise schedule loses its steps near 0 and 1",
        representable=False,
    )


def low_running_count(torch: Torch, tensor: Tensor, result: Tensor, node: Any) -> None:
    if "counts" in tensor.marks:
        torch.facts.add(
            Kind.HOLDS,
            torch.spot(node),
            result.dtype,
            Role.POSITIONS,
            ("integers were cast here", tensor.spot),
            "a running count is exact only up to " + ("2048" if result.dtype == frozenset({"float16"}) else "256"),
            representable=False,
        )


def low_gradient_norm(torch: Torch, name: str, tensor: Tensor, result: Tensor, node: Any) -> None:
    if name in ("norm", "vector_norm") or tensor.square is not None:
        torch.facts.add(
            Kind.HOLDS,
            torch.spot(node),
            result.dtype,
            Role.GRADIENT_NORM,
            ("squared here", tensor.square),
            "squares and their sum overflow past 65504" if result.dtype == frozenset({"float16"}) else "",
        )


def low_normalization(torch: Torch, tensor: Tensor, node: Any) -> None:
    """A low square or variance that a root turns into a scale is a hand-written normalisation."""
    if tensor.square is None or not tensor.low or "gradient" in tensor.marks:
        return
    if tensor.op in ("square", "pow") or not torch.in_forward():
        return
    torch.facts.add(
        Kind.HOLDS,
        tensor.square,
        tensor.dtype,
        Role.NORM_COMPUTATION,
        ("its root is taken here", torch.spot(node)),
        "",
        hand_written=True,
    )


def consumes_softmax(torch: Torch, name: str, tensor: Tensor, node: Any) -> None:
    if tensor.low_softmax is None or not tensor.low:
        return
    feeds = {"topk": "topk", "multinomial": "multinomial", "log": "log", "loss": "loss"}.get(name)
    if feeds is not None and ("differentiable" in tensor.marks or feeds == "loss"):
        torch.facts.add(
            Kind.HOLDS,
            tensor.low_softmax,
            tensor.dtype,
            Role.SOFTMAX,
            (f"it feeds {feeds} here", torch.spot(node)),
            "",
            feeds=feeds,
        )


def sampled(torch: Torch, name: str, args: list[Value], node: Any) -> None:
    if name == "multinomial" and args and isinstance(args[0], Tensor):
        consumes_softmax(torch, "multinomial", args[0], node)


def low_in_disabled_region(torch: Torch, tensor: Tensor, node: Any) -> None:
    region = torch.disabled_region()
    if region is None or region.spot is None or not tensor.low or not torch.outside_region(tensor, region):
        return
    torch.facts.add(
        Kind.AUTOCAST,
        region.spot,
        tensor.dtype,
        None,
        ("low precision is used here", torch.spot(node)),
        "",
        enabled=False,
        upcast=False,
    )


def low_hyperparameter(torch: Torch, dtype: Dtypes | None, origin: Spot | None, source: Const, spot: Spot) -> None:
    """A decay such as 0.999 that becomes 1.0 in its dtype."""
    number = float_constant(source)
    if number is None or dtype is None or not is_low(dtype) or not 0.9 < number < 1.0:
        return
    if all(number > 1.0 - 2.0 ** -(FLOATING[name].mantissa_bits + 2) for name in dtype):
        torch.facts.add(
            Kind.HOLDS,
            spot,
            dtype,
            Role.OPTIMIZER_STATE,
            None,
            f"{number:g} becomes 1.0",
            what="hyperparameter",
            key="decay",
        )
