"""Megatron-Core: what its OptimizerConfig asks for, and that its optimizer keeps float32 masters itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Value, constant
from precaudit.static.overlays import Call, others

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

MEGATRON = framework("megatron")


def config(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`OptimizerConfig(fp16=True, loss_scale=4096)`: a scale that is given is never adapted, None is dynamic."""
    run.met("megatron")
    asked = [mode for mode in MEGATRON.precision if constant(kwargs.get(mode)) is True]
    if len(asked) > 1:
        detail = f"{' and '.join(asked)} are both set"
        run.facts.add(Kind.CONFIG, run.spot(node), "", None, None, detail, conflict=True, key=asked[1])
    scale = constant(kwargs.get("loss_scale"))
    if asked == ["fp16"] and isinstance(scale, (int, float)) and scale > 0:
        spot = run.argument_spot(node, "loss_scale")
        detail = f"loss_scale={scale:g} is never adapted; None is dynamic"
        run.facts.add(
            Kind.LOSS_SCALING, spot, "", Role.LOSS_SCALE, None, detail, extreme=True, dynamic=False, scale=float(scale)
        )
    return others.unfamiliar(run, name, args, kwargs, node)


CALLS: Mapping[str, Call] = {f"megatron.*.{name}": config for name in MEGATRON.named("configs")}
