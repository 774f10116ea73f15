"""Attention runs in one fused kernel, as on a GPU: the CPU has one too, without dropout."""

from __future__ import annotations

from typing import Any

import torch

from .assumed import Assumed
from .patches import Patches


def install(patches: Patches, assumed: Assumed) -> None:
    """Keeps torch from taking attention apart, which would show matmuls in float32 that no GPU makes."""

    def fused(real: Any) -> Any:
        def scaled_dot_product_attention(
            query: Any,
            key: Any,
            value: Any,
            attn_mask: Any = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            **kwargs: Any,
        ) -> Any:
            if dropout_p and query.is_cuda:
                assumed.note("attention without its dropout: the CPU's fused kernel has none")
                dropout_p = 0.0
            return real(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)

        return scaled_dot_product_attention

    patches.wrap(torch.nn.functional, "scaled_dot_product_attention", fused)
