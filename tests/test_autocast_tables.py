"""The autocast tables under `rules/profiles/` against torch itself: its header, and what its ops really return."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from precaudit.runtime.optable import CUDA_FLOAT32
from precaudit.shipped import rules_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
TABLES = {
    device: tomllib.loads((rules_folder() / "profiles" / f"autocast-{device}.toml").read_text(encoding="utf-8"))
    for device in ("cpu", "cuda")
}
Make = Callable[..., Tensor]


def spelled(names: set[str]) -> set[str]:
    """What a user calls the ops of the header; names of kernels that no user calls are left out."""
    out = set()
    for name in names:
        if name.startswith(("upsample_", "_upsample_")):
            name = "interpolate"
        elif name in ("frobenius_norm", "nuclear_norm"):
            name = "norm"
        elif name.startswith("_thnn_fused_") or name in ("_convolution", "convolution", "native_layer_norm"):
            continue
        elif name in ("rnn_tanh_cell", "rnn_relu_cell"):
            name = "rnn_cell"
        elif name == "nll_loss2d":
            name = "nll_loss"
        elif name == "_scaled_dot_product_flash_attention":
            name = "scaled_dot_product_attention"
        out.add(name.removeprefix("linalg_"))
    return out


COMPOSED = {"lower": {"lstm", "gru", "rnn"}, "float32": {"cross_entropy", "normalize"}, "promote": set()}
"""Functions that torch composes of listed ops: the tables name them because that is what stands in a script."""


def listed(*macros: str) -> set[str]:
    """The op names of these lists of autocast_mode.h."""
    text = HEADER.read_text(encoding="utf-8")
    names: set[str] = set()
    for macro in macros:
        body = re.search(rf"#define {macro}\(_\)\s*\\\n(.*?)(?:\n\s*\n|#)", text, re.S)
        if body is None:  # the first list stands without its own #define on the line in some versions
            body = re.search(rf"{macro}\(_\)\s*\\\n(.*?)\n\s*\n", text, re.S)
        assert body is not None, macro
        names |= set(re.findall(r"\b_\((?:ADD_NS\()?(\w+)", body[1]))
    return names


@pytest.mark.skipif(not HEADER.is_file(), reason="this torch comes without its headers")
@pytest.mark.parametrize(
    ("column", "macros"),
    [
        ("lower", ["AT_FORALL_LOWER_PRECISION_FP"]),
        (
            "float32",
            ["AT_FORALL_FP32", "AT_FORALL_FP32_SET_OPT_DTYPE", "AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE"],
        ),
        ("promote", ["AT_FORALL_PROMOTE"]),
    ],
)
def test_cuda_table_is_the_list_of_torchs_own_header(column: str, macros: list[str]) -> None:
    assert set(TABLES["cuda"][column]) - COMPOSED[column] == spelled(listed(*macros))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_op_stands_in_two_columns(device: str) -> None:
    table = TABLES[device]
    names = [name for column in ("lower", "float32", "promote", "banned") for name in table[column]]
    assert len(names) == len(set(names))


def test_runtime_knows_the_same_float32_ops() -> None:
    composed = {"cross_entropy", "normalize", "cosine_similarity", "matrix_norm"}
    losses = {
        name
        for name in TABLES["cuda"]["float32"]
        if "loss" in name or name in ("kl_div", "binary_cross_entropy_with_logits")
    }
    wanted = set(TABLES["cuda"]["float32"])
    assert set(CUDA_FLOAT32.values()) <= wanted
    assert wanted - set(CUDA_FLOAT32.values()) <= composed | losses


def _loss(call: Callable[..., Tensor], **more: Any) -> Callable[[Make], Tensor]:
    return lambda make: call(make(4, 6), make(4, 6), **more)


def _cell(kind: type[torch.nn.Module]) -> Callable[[Make], Tensor]:
    """A recurrent layer whose weights are where `make` makes tensors."""

    def call(make: Make) -> Tensor:
        like = make(1)
        with torch.no_grad():
            module = kind(6, 6)
        return _on(module, like)(make(4, 5, 6) if "Cell" not in kind.__name__ else make(4, 6))

    return call


def _on(module: torch.nn.Module, like: Tensor) -> Callable[..., Any]:
    if not isinstance(like, FakeTensor):
        return module
    mode = like.fake_mode
    with torch.no_grad():
        weights = {n: FakeTensor(mode, p.detach().to("meta"), like.device) for n, p in module.named_parameters()}
    return lambda *args: torch.func.functional_call(module, weights, args)


def first(out: Any) -> Tensor:
    while isinstance(out, tuple):
        out = out[0]
    return out


def classes(make: Make, *shape: int) -> Tensor:
    return make(*shape).abs().to(torch.int64) * 0


CALLS: dict[str, Callable[[Make], Any]] = {
    "conv1d": lambda m: F.conv1d(m(2, 3, 8), m(4, 3, 3)),
    "conv2d": lambda m: F.conv2d(m(2, 3, 8, 8), m(4, 3, 3, 3)),
    "conv3d": lambda m: F.conv3d(m(2, 3, 8, 8, 8), m(4, 3, 3, 3, 3)),
    "conv_transpose1d": lambda m: F.conv_transpose1d(m(2, 3, 8), m(3, 4, 3)),
    "conv_transpose2d": lambda m: F.conv_transpose2d(m(2, 3, 8, 8), m(3, 4, 3, 3)),
    "conv_transpose3d": lambda m: F.conv_transpose3d(m(2, 3, 4, 4, 4), m(3, 4, 3, 3, 3)),
    "conv_tbc": lambda m: torch.conv_tbc(m(8, 2, 3), m(3, 3, 4), m(4)),
    "prelu": lambda m: F.prelu(m(4, 6), m(1)),
    "addmm": lambda m: torch.addmm(m(4, 4), m(4, 6), m(6, 4)),
    "addmv": lambda m: torch.addmv(m(4), m(4, 6), m(6)),
    "addr": lambda m: torch.addr(m(4, 6), m(4), m(6)),
    "matmul": lambda m: torch.matmul(m(4, 6), m(6, 4)),
    "einsum": lambda m: torch.einsum("ij,jk->ik", m(4, 6), m(6, 4)),
    "mm": lambda m: torch.mm(m(4, 6), m(6, 4)),
    "mv": lambda m: torch.mv(m(4, 6), m(6)),
    "vecdot": lambda m: torch.linalg.vecdot(m(4, 6), m(4, 6)),
    "linear": lambda m: F.linear(m(4, 6), m(5, 6)),
    "addbmm": lambda m: torch.addbmm(m(4, 4), m(2, 4, 6), m(2, 6, 4)),
    "baddbmm": lambda m: torch.baddbmm(m(2, 4, 4), m(2, 4, 6), m(2, 6, 4)),
    "bmm": lambda m: torch.bmm(m(2, 4, 6), m(2, 6, 4)),
    "chain_matmul": lambda m: torch.chain_matmul(m(4, 6), m(6, 4)),
    "multi_dot": lambda m: torch.linalg.multi_dot([m(4, 6), m(6, 4), m(4, 3)]),
    "lstm": _cell(torch.nn.LSTM),
    "gru": _cell(torch.nn.GRU),
    "rnn": _cell(torch.nn.RNN),
    "lstm_cell": _cell(torch.nn.LSTMCell),
    "gru_cell": _cell(torch.nn.GRUCell),
    "rnn_cell": _cell(torch.nn.RNNCell),
    "scaled_dot_product_attention": lambda m: F.scaled_dot_product_attention(
        m(2, 2, 4, 8), m(2, 2, 4, 8), m(2, 2, 4, 8)
    ),
    **{
        name: (lambda m, name=name: getattr(torch, name)(m(4, 6)))
        for name in "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan".split()
    },
    "pow": lambda m: m(4, 6).pow(2),
    "softplus": lambda m: F.softplus(m(4, 6)),
    "layer_norm": lambda m: F.layer_norm(m(4, 6), (6,)),
    "rms_norm": lambda m: F.rms_norm(m(4, 6), (6,)),
    "group_norm": lambda m: F.group_norm(m(4, 6), 2),
    "cosine_similarity": lambda m: F.cosine_similarity(m(4, 6), m(4, 6)),
    "poisson_nll_loss": _loss(F.poisson_nll_loss),
    "cosine_embedding_loss": lambda m: F.cosine_embedding_loss(m(4, 6), m(4, 6), m(4)),
    "nll_loss": lambda m: F.nll_loss(m(4, 6), classes(m, 4)),
    "hinge_embedding_loss": _loss(F.hinge_embedding_loss),
    "kl_div": _loss(F.kl_div, reduction="batchmean"),
    "l1_loss": _loss(F.l1_loss),
    "smooth_l1_loss": _loss(F.smooth_l1_loss),
    "huber_loss": _loss(F.huber_loss),
    "mse_loss": _loss(F.mse_loss),
    "margin_ranking_loss": lambda m: F.margin_ranking_loss(m(4), m(4), m(4)),
    "multilabel_margin_loss": lambda m: F.multilabel_margin_loss(m(4, 6), classes(m, 4, 6)),
    "soft_margin_loss": _loss(F.soft_margin_loss),
    "triplet_margin_loss": lambda m: F.triplet_margin_loss(m(4, 6), m(4, 6), m(4, 6)),
    "multi_margin_loss": lambda m: F.multi_margin_loss(m(4, 6), classes(m, 4)),
    "binary_cross_entropy_with_logits": _loss(F.binary_cross_entropy_with_logits),
    "cross_entropy": lambda m: F.cross_entropy(m(4, 6), classes(m, 4)),
    "ctc_loss": lambda m: F.ctc_loss(
        F.log_softmax(m(8, 2, 6), -1), torch.ones(2, 3, dtype=torch.long), torch.tensor([8, 8]), torch.tensor([3, 3])
    ),
    "dist": lambda m: torch.dist(m(4, 6), m(4, 6)),
    "pdist": lambda m: F.pdist(m(4, 6)),
    "cdist": lambda m: torch.cdist(m(4, 6), m(5, 6)),
    "renorm": lambda m: torch.renorm(m(4, 6), 2, 0, 1.0),
    "logsumexp": lambda m: torch.logsumexp(m(4, 6), -1),
    "interpolate": lambda m: F.interpolate(m(2, 3, 4, 4), scale_factor=2),
    "norm": lambda m: m(4, 6).norm(),
    "normalize": lambda m: F.normalize(m(4, 6)),
    "prod": lambda m: m(4, 6).prod(-1),
    "softmax": lambda m: torch.softmax(m(4, 6), -1),
    "log_softmax": lambda m: torch.log_softmax(m(4, 6), -1),
    "cumprod": lambda m: m(4, 6).cumprod(-1),
    "cumsum": lambda m: m(4, 6).cumsum(-1),
    "vector_norm": lambda m: torch.linalg.vector_norm(m(4, 6)),
    "matrix_norm": lambda m: torch.linalg.matrix_norm(m(4, 6)),
    "sum": lambda m: m(4, 6).sum(-1),
    "binary_cross_entropy": lambda m: F.binary_cross_entropy(torch.sigmoid(m(4, 6)), torch.sigmoid(m(4, 6))),
    "grid_sampler": lambda m: F.grid_sample(m(2, 3, 4, 4), m(2, 4, 4, 2), align_corners=False),
    "polar": lambda m: torch.polar(m(4), m(4)),
    "quantile": lambda m: torch.quantile(m(4, 6), 0.5),
    "nanquantile": lambda m: torch.nanquantile(m(4, 6), 0.5),
    "stft": lambda m: torch.stft(m(64), 16, window=m(16), return_complex=True),
    "trace": lambda m: torch.trace(m(6, 6)),
    "avg_pool3d": lambda m: F.avg_pool3d(m(2, 3, 4, 4, 4), 2),
}
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b),
    "addcmul": lambda a, b: torch.addcmul(a, b, b),
    "atan2": torch.atan2,
    "cross": lambda a, b: torch.cross(a, b, dim=-1),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "vdot": lambda a, b: torch.vdot(a[0], b[0]),
    "tensordot": lambda a, b: torch.tensordot(a, b, dims=([0, 1], [0, 1])),
    "bilinear": lambda a, b: F.bilinear(a, b, torch.ones_like(b).unsqueeze(0).expand(2, 3, 3)),
    "scatter_add": lambda a, b: a.scatter_add(0, torch.zeros_like(b, dtype=torch.long), b),
    "index_put": lambda a, b: a.index_put((torch.zeros(3, dtype=torch.long, device=b.device),), b),
    "grid_sampler": lambda a, b: F.grid_sample(
        a.reshape(1, 1, 3, 3), b.repeat(1, 2).reshape(1, 3, 3, 2), align_corners=False
    ),
    "index_copy": lambda a, b: a.index_copy(0, torch.arange(3), b),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
}


@contextmanager
def autocast(device: str) -> Iterator[Callable[[torch.dtype], Make]]:
    """bfloat16 autocast of a device, and a maker of tensors there: fake ones on CUDA, which need no GPU."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if device == "cpu":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                yield lambda dtype: lambda *shape: torch.rand(*shape).to(dtype)
            return
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        mode = FakeTensorMode()
        place = torch.device("cuda:0")

        def fake(dtype: torch.dtype) -> Make:
            return lambda *shape: FakeTensor(mode, torch.empty(*shape, dtype=dtype, device="meta"), place)

        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            with mode:
                yield fake
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])


NEED_A_CUDA_BUILD = {"dot", "vdot", "grid_sampler", "gru", "gru_cell"}
"""Ops whose kernel is asked even for fake tensors; the comparison with the header covers them."""


def cells(column: str) -> list[Any]:
    """(device, op) of one column, as far as a CPU build can run it."""
    return [
        (device, op)
        for device in TABLES
        for op in TABLES[device][column]
        if device == "cpu" or op not in NEED_A_CUDA_BUILD
    ]


@pytest.mark.parametrize(("device", "op"), cells("lower"))
def test_lower_op_returns_low_of_float32(device: str, op: str) -> None:
    with autocast(device) as make:
        try:
            assert first(CALLS[op](make(torch.float32))).dtype is torch.bfloat16
        except RuntimeError as error:
            # A processor without AVX-512 has no bfloat16 LSTM: that one was asked for is the row, float32 has one.
            if "primitive descriptor for the LSTM" not in str(error):
                raise
            with torch.autocast(device, enabled=False):
                assert first(CALLS[op](make(torch.float32))).dtype is torch.float32


@pytest.mark.parametrize(("device", "op"), cells("float32"))
def test_float32_op_returns_float32_of_low(device: str, op: str) -> None:
    with autocast(device) as make:
        assert first(CALLS[op](make(torch.bfloat16))).dtype in (torch.float32, torch.complex64)


@pytest.mark.parametrize(("device", "op"), cells("promote"))
def test_promoting_op_takes_the_widest_of_its_inputs(device: str, op: str) -> None:
    with autocast(device) as make:
        low, wide = make(torch.bfloat16)(3, 3), make(torch.float32)(3, 3)
        for one, other in ((low, wide), (wide, low)):
            assert first(PAIRS[op](one, other)).dtype is torch.float32


@pytest.mark.parametrize(("device", "op"), cells("banned"))
def test_banned_op_is_refused(device: str, op: str) -> None:
    with autocast(device) as make, pytest.raises(RuntimeError, match="unsafe to autocast"):
        CALLS[op](make(torch.float32))


def test_cpu_leaves_low_what_cuda_would_widen() -> None:
    """The difference between the two tables, op by op: nothing missing from CPU's column is float32 there."""
    with autocast("cpu") as make:
        for op in sorted(set(TABLES["cuda"]["float32"]) - set(TABLES["cpu"]["float32"])):
            if op not in ("dist", "pdist", "renorm"):
                assert first(CALLS[op](make(torch.bfloat16))).dtype is torch.bfloat16, op
