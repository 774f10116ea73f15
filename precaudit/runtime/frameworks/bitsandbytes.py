"""bitsandbytes: 4- and 8-bit weights by class and quant_state, and the dtype their matmuls really ran in.

A Linear4bit casts its result back to the input's dtype, so no module hook sees what it computed in; the dispatched op
does. With bnb_4bit_quant_storage the weight's own dtype says bfloat16 for what are 4-bit codes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...model.vocabulary import Kind, Role, Scalar, Site
from ..dtypes import DTYPE_NAMES, LOW
from ..guard import Guard
from ..operations import BACKWARD, FORWARD, Heard, Op, Operations
from ..optable import MATMULS
from ..patching import patch
from ..process.ledger import Observation
from ..sites import user_site
from ..trackers.claims import Claim, relation
from ..trackers.lineage import Flow
from ..trackers.loss_scale import LossScale
from ..trackers.modules import Modules
from ..trackers.tensors import Tensors
from ..trackers.window import Window
from . import Framework, imported

FUSED = ("gemm_4bit", "gemv_4bit")
"""Ops that de-quantise and multiply at once, in the dtype of their result: autocast may cast within them."""
UNPACKED = ("dequantize_4bit", "dequantize_blockwise")
COPIED = ("_to_copy",)
NAMED = 3
"""How many parameters a finding names."""


class Bitsandbytes(Framework):
    """Quantised layers are read anew at each step: on some CPUs a forward pass repacks one in place."""

    title = "bitsandbytes"
    order = 120
    classes = ("bitsandbytes",)
    awaits = ("transformers.utils.quantization_config",)

    def __init__(
        self,
        guard: Guard,
        operations: Operations,
        window: Window,
        tensors: Tensors,
        flow: Flow,
        loss_scale: LossScale,
        modules: Modules,
    ) -> None:
        self._guard, self._window, self._tensors, self._flow, self._loss_scale, self._modules = (
            guard,
            window,
            tensors,
            flow,
            loss_scale,
            modules,
        )
        self._layers: weakref.WeakKeyDictionary[Any, Site | None] = weakref.WeakKeyDictionary()
        """Layer with a quantised weight -> the user's line that made it."""
        self._configured: Site | None = None
        """Where BitsAndBytesConfig was written."""
        self._computed: dict[Any, int] = {}
        """Dtype -> quantised matmuls of the traced forward passes."""
        self._autocast: set[Any] = set()
        """Those dtypes that autocast chose, whatever the layers were told."""
        operations.on(self._hear)

    def install(self) -> Iterable[Callable[[], None]]:
        settings = imported("transformers.utils.quantization_config", "BitsAndBytesConfig")
        return [patch(kind, "__init__", self._around_config) for kind in settings]

    def _around_config(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(config: Any, *args: Any, **kwargs: Any) -> None:
            self._guard("BitsAndBytesConfig", self._configured_here)
            original(config, *args, **kwargs)

        return __init__

    def _configured_here(self) -> None:
        self._configured = user_site() or self._configured

    def meet(self, made: Any, site: Site | None) -> None:
        if isinstance(made, nn.Module) and isinstance(getattr(made, "weight", None), Tensor):
            self._layers.setdefault(made, site)

    # -- storage

    def claims(self) -> Iterable[Claim]:
        for layer in self._layers:
            codes = storage(layer.weight)
            if codes:
                yield Claim(layer.weight, Role.QUANTIZED_STORAGE, type(layer.weight).__name__, dtype=codes)

    # -- compute

    def _hear(self, op: Op) -> Iterable[Heard]:
        for names, act in ((FUSED, self._multiplied), (UNPACKED, self._dequantised), (COPIED, self._copied)):
            if op.name in names:
                yield Heard(FORWARD, act)
                yield Heard(BACKWARD, act)  # a checkpointed forward pass runs, with gradients, inside backward
        if op.name in MATMULS:
            yield Heard(FORWARD, self._consumed)

    def _multiplied(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self._computed[out.dtype] = self._computed.get(out.dtype, 0) + 1
        if out.dtype is not args[0].dtype:
            self._autocast.add(out.dtype)

    def _dequantised(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        self._flow.mark(out, dequantised=True)

    def _copied(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if "dequantised" in self._flow.of(args[0]):
            self._flow.mark(out, dequantised=True)

    def _consumed(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        flow = self._flow
        if flow.marked and isinstance(out, Tensor) and any("dequantised" in flow.of(arg) for arg in args):
            self._computed[out.dtype] = self._computed.get(out.dtype, 0) + 1

    # -- what the rules ask

    def observes(self) -> Iterable[Observation]:
        trained = [layer for layer in self._layers if storage(layer.weight)]
        if not trained or not self._window.attempts:
            return
        yield from self._compute(trained)
        yield from self._unprepared(trained)

    def _compute(self, layers: list[Any]) -> Iterator[Observation]:
        asked = {layer.compute_dtype for layer in layers if getattr(layer, "compute_type_is_set", False)}
        declared = next(iter(asked)) if len(asked) == 1 else None
        site = self._configured or next((self._layers[layer] for layer in layers), None)
        for dtype, count in self._computed.items():
            attrs: dict[str, Scalar] = {}
            if self._loss_scale.missing:
                attrs["loss_scaling"] = "none"
            elif any(state.uses for state in self._loss_scale.scalers.values()):
                attrs["loss_scaling"] = "scaled"
            words = f"bnb_4bit_compute_dtype, {len(layers)} layers"
            yield Observation(
                Kind.DECLARED,
                DTYPE_NAMES[dtype],
                Role.QUANTIZED_STORAGE,
                site,
                detail=words,
                count=count,
                attrs=attrs,
            )
        differs = relation(
            DTYPE_NAMES.get(declared, ""),
            [DTYPE_NAMES[dtype] for dtype in self._computed if dtype not in self._autocast],
        )
        if differs is not None:
            how, actual = differs
            yield Observation(
                Kind.DECLARED,
                DTYPE_NAMES[declared],
                Role.MATMUL_COMPUTE,
                site,
                detail="bnb_4bit_compute_dtype",
                count=1,
                attrs={"actual": actual, "relation": how},
            )

    def _unprepared(self, layers: list[Any]) -> Iterator[Observation]:
        """Beside a quantised base that is trained on: frozen weights that prepare_model_for_kbit_training upcasts."""
        modules = self._modules
        for root in {modules.around(layer)[-1] for layer in layers}:
            named = dict(root.named_parameters())
            if not any(p.requires_grad for p in named.values()):
                continue
            codes = {id(layer.weight) for layer in layers}
            low = {
                name: p
                for name, p in named.items()
                if p.dtype in LOW and not p.requires_grad and id(p) not in codes and self._tensors.of(p).claimed is None
            }
            if low:
                dtype = DTYPE_NAMES[next(iter(low.values())).dtype]
                shown = ", ".join(list(low)[:NAMED])
                yield Observation(
                    Kind.CALL,
                    dtype,
                    site=next((self._layers[layer] for layer in layers), None),
                    detail=f"{len(low)} weights beside it stay {dtype}: {shown}{', ...' if len(low) > NAMED else ''}",
                    count=len(low),
                    attrs={"api": "prepare_model_for_kbit_training", "called": False},
                )


def storage(weight: Any) -> str:
    """What a quantised weight is stored in: "nf4", "fp4", "int8"; "" for one that is not quantised (yet)."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return str(state.quant_type)
    quantised = getattr(weight, "CB", None) is not None or getattr(weight, "dtype", None) is torch.int8
    return "int8" if quantised else ""
