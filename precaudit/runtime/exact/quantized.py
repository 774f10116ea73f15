"""Formulas of quantized weights: what they hold is exact, and a matmul with them is one in float64."""

from __future__ import annotations

from typing import Any

import torch

OPERATIONS = "bitsandbytes"
"""Of these ops only the matmul computes: others turn frozen weights into numbers, or numbers into such weights."""
SCALES = frozenset("absmax absmax_code absmax_offset".split())
"""Arguments that are part of a weight."""
NESTED = 256
"""Scales that share one of their own."""


def multiplied(func: Any, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """`gemm_4bit`: the first argument times the weight, whose scales may be quantized themselves."""
    given, packed, shape, scales, block, kind, bias, low_scales, code, offset = (*args, *[None] * 4)[:10]
    library = torch.ops.bitsandbytes
    if low_scales is not None:
        scales = library.dequantize_blockwise.default(low_scales, scales, code, NESTED, torch.float32) + offset
    weight = library.dequantize_4bit.default(packed, scales, block, kind, shape, torch.float32)
    return torch.nn.functional.linear(given, weight.double(), bias)
