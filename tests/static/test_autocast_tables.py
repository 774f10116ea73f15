"""The autocast tables say what torch itself does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from precaudit.static.autocast import table

torch = pytest.importorskip("torch")

COMPOSITE = frozenset(
    """lstm gru rnn rnn_cell vecdot multi_dot normalize norm vector_norm matrix_norm interpolate cross_entropy softmax
    log_softmax""".split()
)
"""Names of ours that stand for several of ATen's, or are made of listed operations."""


def header_lists() -> dict[str, set[str]]:
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text()
    found = {}
    for part in re.split(r"#define AT_FORALL_", text)[1:]:
        found[part.split("(")[0]] = set(re.findall(r"_\((\w+)", part))
    return found


def test_cuda_lists_are_those_of_the_header() -> None:
    lists = header_lists()
    lower, float32 = lists["LOWER_PRECISION_FP"], lists["FP32"] | lists["FP32_SET_OPT_DTYPE"]
    assert table("cuda").lower - COMPOSITE <= lower
    assert table("cuda").float32 - COMPOSITE <= float32


@pytest.mark.parametrize(
    "name", ["softmax", "log_softmax", "pow", "sum", "cumsum", "exp", "rsqrt", "norm", "linear", "matmul", "prod"]
)
def test_cpu_table_is_what_torch_does(name: str) -> None:
    low = torch.full((4, 4), 0.5, dtype=torch.bfloat16)
    wide = torch.full((4, 4), 0.5)
    calls = {
        "softmax": lambda: torch.softmax(low, -1),
        "log_softmax": lambda: torch.log_softmax(low, -1),
        "pow": lambda: low.pow(2),
        "sum": lambda: low.sum(),
        "cumsum": lambda: low.cumsum(0),
        "exp": lambda: low.exp(),
        "rsqrt": lambda: low.rsqrt(),
        "norm": lambda: low.norm(),
        "prod": lambda: low.prod(),
        "linear": lambda: torch.nn.functional.linear(wide, wide),
        "matmul": lambda: wide @ wide,
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = calls[name]().dtype
    rules = table("cpu")
    wanted = torch.float32 if name in rules.float32 else torch.bfloat16
    assert seen == wanted
