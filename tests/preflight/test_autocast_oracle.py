"""Against torch itself: FakeTensors on cuda:0 go through the real AutocastCUDA, op by op and module by module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from test_autocast_tables import CALLS, NEED_A_CUDA_BUILD, PAIRS, autocast, first
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from precaudit.preflight.layer import start

LOW = torch.bfloat16
UNLIKE = {"lstm", "gru", "rnn", "stft", "polar"}
"""Recurrent layers, FFT and polar: docs/preflight.md."""
ONE_DTYPE = {"lstm_cell", "rnn_cell"}
"""What CALLS gives float32 weights of its own."""


def said(call: Callable[[], Any]) -> str:
    """The dtype of what a call gives, or that it raises."""
    try:
        return str(first(call()).dtype)
    except (RuntimeError, AssertionError) as error:
        return "unsafe" if "unsafe to autocast" in str(error) else "raises"


def table(dtype: torch.dtype) -> dict[str, Callable[[Any], Any]]:
    """Operation -> what calls it, where torch has an answer for this dtype."""
    left_out = NEED_A_CUDA_BUILD | UNLIKE | (ONE_DTYPE if dtype is torch.float64 else set())
    calls: dict[str, Callable[[Any], Any]] = {name: call for name, call in CALLS.items() if name not in left_out}
    if dtype is LOW:
        for name in set(PAIRS) - NEED_A_CUDA_BUILD - {"index_copy"}:
            calls[f"{name} with float32"] = lambda make, pair=PAIRS[name]: pair(make(3, 3), make(3, 3).float())
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, LOW, torch.float64], ids=str)
def test_each_operation_gives_the_dtype_that_cudas_autocast_gives(dtype: torch.dtype) -> None:
    calls = table(dtype)
    with autocast("cuda") as make:
        wanted = {name: said(lambda call=call: call(make(dtype))) for name, call in calls.items()}
    layer = start({"device": "h100"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cuda", dtype=LOW):

            def there(*shape: int) -> Tensor:
                return torch.rand(*shape).to("cuda", dtype)

            found = {name: said(lambda call=call: call(there)) for name, call in calls.items()}
    finally:
        layer.remove()
    known = {name: dtype for name, dtype in wanted.items() if dtype != "raises"}  # no meta kernel for this dtype
    assert {name: found[name] for name in known} == known
    assert len(known) >= 80


class Residual(nn.Module):
    """A block of a U-Net: group norm, SiLU, convolution, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv, self.skip = (
            nn.GroupNorm(2, width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv(nn.functional.silu(self.norm(x)))


def convolutions() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 4), nn.LogSoftmax(-1))


def depthwise() -> nn.Module:
    layers = [nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, 2))


def unet() -> nn.Module:
    layers = [Residual(4), nn.AvgPool2d(2), Residual(4), nn.Upsample(scale_factor=2), Residual(4)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(4, 3, 2, 2))


class Attention(nn.Module):
    """One by hand, as T5 and many others have it: scores, a softmax, a second matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.softmax = nn.LayerNorm(16), nn.Softmax(-1)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(self.softmax(q @ k.transpose(-1, -2) / 4) @ v)


def encoder() -> nn.Module:
    return nn.Sequential(Attention(), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16))


def mixer() -> nn.Module:
    layers = [nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.RMSNorm(16), nn.Linear(16, 8)]
    return nn.Sequential(*layers, nn.Softplus(), nn.Softmax(-1))


def activations() -> nn.Module:
    layers = [nn.Conv1d(3, 6, 3), nn.InstanceNorm1d(6, affine=True), nn.PReLU(), nn.Flatten(), nn.Linear(36, 8)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Sigmoid())


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ELU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (convolutions, (2, 3, 8, 8)),
    "depthwise": (depthwise, (2, 4, 8, 8)),
    "unet": (unet, (1, 4, 8, 8)),
    "encoder": (encoder, (2, 5, 16)),
    "mixer": (mixer, (2, 8)),
    "activations": (activations, (2, 3, 8)),
    "volumes": (volumes, (2, 1, 4, 4, 4)),
}
"""Name -> what builds it, and the shape of its input."""


def outputs(model: nn.Module, call: Callable[[], Any]) -> dict[str, str]:
    """Module -> the dtype that it gave."""
    seen: dict[str, str] = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():

            def hook(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
                while isinstance(out, (tuple, list)):
                    out = out[0]
                if isinstance(out, Tensor):
                    seen[name] = str(out.dtype)

            hooks.callback(module.register_forward_hook(hook).remove)
        call()
    return seen


def by_torch(build: Callable[[], nn.Module], like: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """The outputs of a model whose tensors, and what it is called with, are FakeTensors on cuda:0."""
    # Beside them a model may keep a CPU tensor that is no buffer.
    model, mode, place = build().eval(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda:0")
    with torch.no_grad():
        own = [*model.named_parameters(), *model.named_buffers()]
        held = {name: FakeTensor(mode, tensor.detach().to("meta"), place) for name, tensor in own}
        given = FakeTensor(mode, like.to("meta"), place)
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True), torch.set_autocast_dtype("cuda", dtype)
        try:
            with mode:
                return outputs(model, lambda: torch.func.functional_call(model, held, (given,)))
        finally:
            torch.set_autocast_enabled("cuda", before[0]), torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("dtype", [torch.float16, LOW], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_each_module_of_a_model_gives_the_dtype_that_it_gives_on_cuda(name: str, dtype: torch.dtype) -> None:
    build, shape = MODELS[name]
    wanted = by_torch(build, torch.rand(shape), dtype)
    layer = start({"device": "h100"})
    try:
        model = build().eval().cuda()
        with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
            found = outputs(model, lambda: model(torch.rand(*shape, device="cuda")))
    finally:
        layer.remove()
    assert found == wanted
    assert len(found) > 3
