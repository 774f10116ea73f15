"""What-if's formats and effects against torchao: its MX and NVFP4 tensors, and a float8 training that it emulates."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "trace"))

from precaudit.runtime.exact.formats import Rounding

pytestmark = pytest.mark.slow
NEAREST = Rounding()


def numbers() -> Tensor:
    """Rows of many sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.randint(-6, 6, (64, 8, 1), generator=generator).float())
    return (torch.randn(64, 8, 64, generator=generator) * sizes).flatten(1)


@pytest.mark.parametrize(("name", "element"), [("mxfp8", torch.float8_e4m3fn), ("mxfp4", torch.float4_e2m1fn_x2)])
def test_mx_blocks_are_torchaos(name: str, element: torch.dtype) -> None:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    wide = numbers()
    theirs = MXTensor.to_mx(wide, element, 32).dequantize(torch.float32)
    assert torch.equal(NEAREST.into(name, wide.double()).values.float(), theirs)


def test_nvfp4_blocks_are_torchaos() -> None:
    """But for a few whose float32 quotient lies on the other side of a tie."""
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    wide = numbers()
    scale = per_tensor_amax_to_scale(wide.abs().amax())
    theirs = NVFP4Tensor.to_nvfp4(wide, per_tensor_scale=scale).dequantize(torch.float32)
    ours = NEAREST.into("nvfp4", wide.double()).values.float()
    assert float(torch.isclose(ours, theirs, rtol=1e-5).double().mean()) > 0.999


def test_a_float8_training_that_torchao_emulates() -> None:
    from test_what_if import Net, Rounded, Running, batch
    from torchao.float8 import CastConfig, Float8LinearConfig, convert_to_float8_training

    torch.manual_seed(0)
    plain = Net()
    e4m3 = CastConfig(target_dtype=torch.float8_e4m3fn)
    low = convert_to_float8_training(
        copy.deepcopy(plain),
        config=Float8LinearConfig(
            emulate=True, cast_config_input=e4m3, cast_config_weight=e4m3, cast_config_grad_output=e4m3
        ),
        module_filter_fn=lambda module, name: isinstance(module, nn.Linear),
    )
    ours = copy.deepcopy(plain).double()
    x, y = batch(1)
    for model in (plain, low):
        F.cross_entropy(model(x), y).backward()
    with Rounded("float8_e4m3", Running(ours), None):
        F.cross_entropy(ours(x.double()), y).backward()
    exact, theirs, found = (
        torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
        for model in (plain, low, ours)
    )
    effect = float((theirs - exact).norm() / exact.norm())
    assert effect > 0.005
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(effect, rel=0.02)
    assert float((found - theirs).norm()) < 0.2 * float((theirs - exact).norm())
