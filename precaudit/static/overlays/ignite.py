"""Ignite: the training step that it makes, whose autocast is float16 and whose loss nobody scales unless asked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.model.vocabulary import Kind, Role
from precaudit.static.language.values import Device, Value, constant, truth
from precaudit.static.overlays import Call, others
from precaudit.static.overlays.torch import opaque

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

IGNITE = framework("ignite")
PLAIN = "supervised_training_step_amp"
"""Always under autocast; the other has to be told `amp_mode="amp"`."""


def step(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`create_supervised_trainer(model, optimizer, loss_fn, device, amp_mode=..., scaler=...)`."""
    run.met("ignite")
    run.training.trained = True
    mode = "amp" if name.endswith(PLAIN) else str(constant(kwargs.get("amp_mode")))
    device = kwargs.get("device", args[3] if len(args) > 3 else None)
    unscaled = "scaler" not in kwargs or truth(kwargs["scaler"]) is False
    known = "\0rest" not in kwargs and len(args) < 5
    if known and unscaled and mode in IGNITE.dtypes("autocast") and not _on_cpu(device):
        dtype, detail = IGNITE.dtypes("autocast")[mode], f'amp_mode="{mode}" without scaler=True'
        run.facts.add(Kind.HOLDS, run.spot(node), dtype, Role.GRADIENT, None, detail, loss_scaling="none")
    return opaque.result(run, [*args, *kwargs.values()], node)


def _on_cpu(device: Value | None) -> bool:
    """Whether the device is a CPU for certain, where Ignite's autocast, which is that of CUDA, does nothing."""
    if isinstance(device, Device):
        return device.types == frozenset({"cpu"})
    return str(constant(device)).startswith("cpu")


CALLS: Mapping[str, Call] = {
    "ignite.*": others.harmless,
    **{f"ignite.engine.{name}": step for name in IGNITE.named("steps")},
}
