"""DeepSpeed engines: the masters, sums and loss scale of each ZeRO stage, and what the config asked for.

The inner optimizer is the user's own object with its parameters replaced by float32 flat ones, so that masters and
optimizer state are seen at its step. Attribute names are those of DeepSpeed 0.19; one that is missing is not told of.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.vocabulary import Kind, Role, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..events import Bus, StepSkipped, WrapperMade
from ..guard import Guard
from ..patching import patch
from ..process.ledger import Observation
from ..trackers.claims import Claim, Declaration
from ..trackers.loss_scale import Skips
from ..trackers.modules import Modules
from ..trackers.window import Window
from . import Framework
from .sharding import pattern

SUMS = (
    "grad_partitions_flat_buffer",
    "fp32_groups_gradients_flat",
    "accumulated_grads_in_cpu",
    "all_grad_tensors",
    "averaged_gradients",
)
"""Where a ZeRO stage keeps the gradients of earlier micro-batches; the first that holds any is the one in use."""

MASTERS: Mapping[str, str] = {
    "single_partition_of_fp32_groups": "bit16_groups",
    "fp32_groups_flat_partition": "bf16_groups",
    "fp32_partitioned_groups_flat": "fp16_groups",
}
"""The flat masters of a wrapper -> the groups of the user's own parameters that they stand for, in the same order."""


class DeepSpeed(Framework):
    """One engine per `deepspeed.initialize`; it is met while it is being built, before its optimizer's trial step."""

    title = "DeepSpeed"
    order = 30
    classes = ("deepspeed",)
    awaits = ("deepspeed.runtime.engine",)
    inserts = frozenset({"module"})

    def __init__(self, guard: Guard, bus: Bus, window: Window, modules: Modules) -> None:
        self._guard, self._bus, self._window, self._modules = guard, bus, window, modules
        self._engines: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()
        self._skips: weakref.WeakKeyDictionary[Any, Skips] = weakref.WeakKeyDictionary()

    def install(self) -> Iterable[Callable[[], None]]:
        engine = getattr(sys.modules.get("deepspeed.runtime.engine"), "DeepSpeedEngine", None)
        if engine is None:
            return []
        return [patch(engine, "__init__", self._around_init), patch(engine, "step", self._around_step)]

    def _around_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(engine: Any, *args: Any, **kwargs: Any) -> None:
            self._bus.tell(WrapperMade(engine))
            original(engine, *args, **kwargs)

        return __init__

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(engine: Any, *args: Any, **kwargs: Any) -> Any:
            before: list[tuple[int, float | None]] = []
            look = self._guard
            look("DeepSpeed's step", lambda: before.append((engine.skipped_steps, _scale(engine.optimizer))))
            result = original(engine, *args, **kwargs)
            if before:
                look("DeepSpeed's step", self._after_step, engine, *before[0])
            return result

        return step

    def _after_step(self, engine: Any, skipped: int, scale: float | None) -> None:
        """Where a step was skipped the inner optimizer was not called: none of its hooks told of the attempt."""
        if scale is not None and engine.skipped_steps > skipped:
            self._skips.setdefault(engine, Skips()).at(scale)
            self._bus.tell(StepSkipped(engine.basic_optimizer))

    def meet(self, made: Any, site: Site | None) -> None:
        if any(kind.__name__ == "DeepSpeedEngine" for kind in type(made).__mro__):
            self._engines.setdefault(made, site)

    def _running(self) -> Iterator[tuple[Any, Any, Site | None]]:
        """(engine, the wrapper around its optimizer or that optimizer itself, the user's line)"""
        for engine, site in list(self._engines.items()):
            if vars(engine).get("optimizer") is not None:  # an engine that is being built cannot be asked
                yield engine, engine.optimizer, site

    def tries_out(self, optimizer: Any) -> bool:
        # A wrapper lets the optimizer step once to make its state, and becomes engine.optimizer only afterwards.
        held = [vars(engine) for engine in self._engines]
        return any(one.get("optimizer") is None and one.get("basic_optimizer") is optimizer for one in held)

    def parameter_name(self, parameter: Tensor) -> str:
        for _, wrapper, _ in self._running():
            for masters, groups in MASTERS.items():
                for flat, group in zip(getattr(wrapper, masters, ()), getattr(wrapper, groups, ()), strict=False):
                    if flat is parameter:
                        names = getattr(wrapper, "param_names", {})
                        return pattern([str(names[p]) for p in _flat(group) if p in names] or ["*"])
            both = (_flat(getattr(wrapper, name, ())) for name in ("fp32_groups", "fp16_groups"))
            for master, own in zip(*both, strict=False):  # stage 0 keeps one master for each parameter
                if master is parameter:
                    return self._modules.name(own)
        return ""

    def claims(self) -> Iterable[Claim]:
        for _, wrapper, site in self._running():
            for name in MASTERS:
                for flat in _flat(getattr(wrapper, name, None)):
                    yield Claim(flat, Role.MASTER_WEIGHT, name, site)

    def accumulates(self) -> Iterable[Claim]:
        for engine, wrapper, site in self._running():
            for name in SUMS:
                kept = list(_flat(getattr(wrapper, name, None)))
                yield from (Claim(tensor, Role.GRADIENT_ACCUMULATION, name, site) for tensor in kept)
                if kept:
                    break
            else:
                for p in engine.module.parameters():
                    name = "grad_accum" if isinstance(getattr(p, "grad_accum", None), Tensor) else "grad"
                    if isinstance(getattr(p, name), Tensor):
                        yield Claim(getattr(p, name), Role.GRADIENT_ACCUMULATION, f".{name}", site, p)

    def scales_loss(self) -> bool:
        return any(_scale(wrapper) is not None for _, wrapper, _ in self._running())

    def declares(self) -> Iterable[Declaration]:
        for engine, _, site in self._running():
            config = engine._config
            reduced = engine.communication_data_type
            chosen = "explicit" if config.communication_data_type is not None else "framework"
            yield Declaration(Role.GRADIENT_REDUCTION, DTYPE_NAMES[reduced], "communication_data_type", site, chosen)
            summed = engine.get_data_types()[1]
            chosen = "explicit" if config.grad_accum_dtype is not None else "framework"
            yield Declaration(Role.GRADIENT_ACCUMULATION, DTYPE_NAMES[summed], "grad_accum_dtype", site, chosen)

    def observes(self) -> Iterable[Observation]:
        for engine, wrapper, site in self._running():
            yield from self._switches(engine, site)
            scale = _scale(wrapper)
            if scale is not None:
                yield from self._scaling(engine, wrapper, scale, site)
            if engine in self._skips:
                told = self._skips[engine].observation(self._window, site)
                yield from [told] if told is not None else []

    def _switches(self, engine: Any, site: Site | None) -> Iterator[Observation]:
        """Keys of the config that are wrong by themselves."""
        config = engine._config
        for mode, section in (("fp16", "float16_config"), ("bf16", "bfloat16_config")):
            key = f"{mode}_master_weights_and_grads"
            if getattr(getattr(config, section, None), key, False):
                low = "float16" if mode == "fp16" else "bfloat16"
                yield Observation(Kind.CONFIG, low, Role.MASTER_WEIGHT, site, count=1, attrs={"key": key})
        many = engine.gradient_accumulation_steps()
        if many < 2:
            return
        told = {
            "grad_accum_dtype": (config.grad_accum_dtype, Role.GRADIENT_ACCUMULATION, engine.get_data_types()[1]),
            "communication_data_type": (
                config.communication_data_type,
                Role.GRADIENT_REDUCTION,
                engine.communication_data_type,
            ),
        }
        for key, (given, role, dtype) in told.items():
            if given is not None and dtype in LOW:
                yield Observation(
                    Kind.CONFIG,
                    DTYPE_NAMES[dtype],
                    role,
                    site,
                    detail=f"over {many} micro-batches",
                    count=1,
                    attrs={"key": key, "many_micro_batches": True},
                )

    def _scaling(self, engine: Any, wrapper: Any, scale: float, site: Site | None) -> Iterator[Observation]:
        dynamic = bool(engine.dynamic_loss_scale())
        words = f"loss scale {scale:g}, a Python number"
        yield Observation(Kind.HOLDS, "float64", Role.LOSS_SCALE, site, detail=words, count=1)
        if not dynamic:
            yield Observation(
                Kind.LOSS_SCALING,
                "float64",
                Role.LOSS_SCALE,
                site,
                detail=f"loss_scale={scale:g} is never adapted; 0 is dynamic",
                count=1,
                attrs={"extreme": True, "dynamic": False, "scale": scale},
            )


def _scale(wrapper: Any) -> float | None:
    """The number a float16 wrapper multiplies the loss by; None for every other engine."""
    groups = getattr(wrapper, "bit16_groups", None) or getattr(wrapper, "fp16_groups", None)
    scale = getattr(wrapper, "cur_scale", None)
    if scale is None:
        scale = getattr(wrapper, "loss_scale", None)
    halves = any(tensor.dtype is torch.float16 for tensor in _flat(groups))
    return float(scale) if halves and isinstance(scale, (int, float)) else None


def _flat(value: Any) -> Iterator[Tensor]:
    """The tensors in lists and dicts of any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
