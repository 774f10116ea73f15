"""SyncBatchNorm's kernels, which only a GPU has: its arithmetic in torch's own operations, with the dtypes of CUDA's.

Statistics are float32 of an input in half precision, and of the input's dtype otherwise; results have the input's.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .patches import Patches

LOW = (torch.float16, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in LOW else tensor


def _across(tensor: Tensor, like: Tensor) -> Tensor:
    """One number per channel, to go with `like`, whose channels are its second dimension."""
    return tensor.view(1, -1, *[1] * (like.dim() - 2))


def _others(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _scaled(tensor: Tensor, weight: Tensor | None) -> Tensor:
    return tensor if weight is None else tensor * _across(_wide(weight), tensor)


def stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each channel: [C], [C]."""
    variance, mean = torch.var_mean(_wide(input), _others(input), correction=0)
    return mean, (variance + eps).rsqrt()


def gather(input: Tensor, mean: Tensor, invstd: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
           momentum: float, eps: float, counts: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Those of all ranks, [ranks, C] each, as one; the running statistics go towards it."""
    count = _wide(counts).view(-1, 1)
    total = count.sum()
    together = (mean * count).sum(0) / total
    squares = ((invstd.pow(-2) - eps + (mean - together).square()) * count).sum(0)
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(together, alpha=momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(squares / (total - 1), alpha=momentum)
    return together, (squares / total + eps).rsqrt()


def normalized(input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor,
               eps: float) -> Tensor:  # fmt: skip
    """What the module gives, of the shape and dtype of its input."""
    out = _scaled((_wide(input) - _across(mean, input)) * _across(invstd, input), weight)
    return (out if bias is None else out + _across(_wide(bias), out)).to(input.dtype)


def reduced(grad_out: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, input_g: bool,
            weight_g: bool, bias_g: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The sums over this rank that the gradients need, and those of weight and bias: [C] each."""
    gradient = _wide(grad_out)
    total = gradient.sum(_others(input))
    product = (gradient * (_wide(input) - _across(mean, input))).sum(_others(input))
    dtype = weight.dtype if weight is not None else total.dtype
    return (
        total,
        product,
        (product * invstd).to(dtype) if weight_g else None,
        total.to(dtype) if bias_g else None,
    )


def backward(grad_out: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sum_dy: Tensor,
             sum_dy_xmu: Tensor, count: Tensor) -> Tensor:  # fmt: skip
    """The gradient of the input, in its dtype."""
    total = count.sum()
    centred = _wide(input) - _across(mean, input)
    slope = _across(sum_dy_xmu / total * invstd.square(), input)
    inner = _wide(grad_out) - _across(sum_dy / total, input) - centred * slope
    return _scaled(inner * _across(invstd, input), weight).to(input.dtype)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather,
    "batch_norm_elemt": normalized,
    "batch_norm_backward_reduce": reduced,
    "batch_norm_backward_elemt": backward,
}


def install(patches: Patches) -> None:
    """Gives CPU tensors what SyncBatchNorm asks of a GPU's, and tensors without numbers its sizes."""
    library = torch.library.Library("aten", "IMPL")
    patches.undo.callback(library._destroy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in KERNELS.items():
            function: Any = kernel
            library.impl(name, function, "CPU")
            library.impl(name, function, "Meta")
