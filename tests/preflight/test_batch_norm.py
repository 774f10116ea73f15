"""SyncBatchNorm's kernels, which only a GPU has, against BatchNorm over the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from precaudit.preflight import batch_norm

aten = torch.ops.aten


def test_two_ranks_together_are_one_batch_norm_over_their_rows() -> None:
    torch.manual_seed(0)
    whole, gradient = torch.randn(8, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(8, 3, 5).double()
    module = nn.BatchNorm1d(3, momentum=0.2).double()
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    wanted = module(whole)
    wanted.backward(gradient)

    parts, grads = [whole.detach()[:3], whole.detach()[3:]], [gradient[:3], gradient[3:]]
    means, deviations = zip(*(batch_norm.stats(part, module.eps) for part in parts), strict=True)
    counts = torch.tensor([15.0, 25.0], dtype=torch.float64)
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    mean, invstd = batch_norm.gather(
        parts[0], torch.stack(means), torch.stack(deviations), *running, 0.2, module.eps, counts
    )
    weight, bias = module.weight.detach(), module.bias.detach()
    out = torch.cat([batch_norm.normalized(part, weight, bias, mean, invstd, module.eps) for part in parts])
    sums = [
        batch_norm.reduced(g, part, mean, invstd, weight, True, True, True)
        for g, part in zip(grads, parts, strict=True)
    ]
    dy, product, by_weight, by_bias = (sum(each) for each in zip(*sums, strict=True))
    back = torch.cat(
        [
            batch_norm.backward(g, part, mean, invstd, weight, dy, product, counts.int())
            for g, part in zip(grads, parts, strict=True)
        ]
    )
    pairs = [(out, wanted), (back, whole.grad), (by_weight, module.weight.grad), (by_bias, module.bias.grad)]
    for found, right in [*pairs, (running[0], module.running_mean), (running[1], module.running_var)]:
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("without_numbers", [False, True])
def test_statistics_are_float32_and_results_as_the_input(without_numbers: bool, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("fake" if without_numbers else "layer")
    x = torch.randn(4, 3, 8, 8, device="cuda", dtype=torch.float16)
    weight = torch.ones(3, device="cuda")
    mean, invstd = aten.batch_norm_stats(x, 1e-5)
    out = aten.batch_norm_elemt(x, weight, weight, mean, invstd, 1e-5)
    sums = aten.batch_norm_backward_reduce(out, x, mean, invstd, weight, True, True, True)
    back = aten.batch_norm_backward_elemt(out, x, mean, invstd, weight, *sums[:2], torch.ones(1, device="cuda").int())
    told = [(one.dtype, tuple(one.shape), one.device.type) for one in (mean, invstd, out, *sums, back)]
    low, wide = (torch.float16, (4, 3, 8, 8), "cuda"), (torch.float32, (3,), "cuda")
    assert told == [wide, wide, low, wide, wide, wide, wide, low]
