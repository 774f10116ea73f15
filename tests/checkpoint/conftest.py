"""What the tests of `precaudit checkpoint` share: a trained model, and the report on a path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from precaudit.cli import run


class Said(NamedTuple):
    """What one run of the command came to."""

    code: int
    report: dict[str, Any]
    err: str

    @property
    def rules(self) -> list[tuple[str, str]]:
        return [(finding["rule"], finding["severity"]) for finding in self.report["findings"]]

    def finding(self, rule: str) -> dict[str, Any]:
        return next(finding for finding in self.report["findings"] if finding["rule"] == rule)

    @property
    def held(self) -> dict[str, dict[str, int]]:
        """Role -> dtype -> tensors."""
        table: dict[str, dict[str, int]] = {}
        for row in self.report["roles"]:
            if row["dtype"]:
                table.setdefault(row["role"], {})[row["dtype"]] = row["tensors"]
        return table


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `precaudit checkpoint --output-format json` on paths."""

    def look(*words: object) -> Said:
        capsys.readouterr()
        code = run(["checkpoint", "--output-format", "json", *(str(word) for word in words)])
        said = capsys.readouterr()
        return Said(code, json.loads(said.out) if said.out else {}, said.err)

    return look


class Trained(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer


@pytest.fixture
def trained() -> Callable[..., Trained]:
    """A small model with BatchNorm that an optimizer has taken three steps with."""

    def make(dtype: torch.dtype = torch.float32, optimizer: Any = torch.optim.AdamW, **options: Any) -> Trained:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)).to(dtype)
        stepping = optimizer(model.parameters(), lr=1e-3, **options)
        for _ in range(3):
            model(torch.randn(8, 16, dtype=dtype)).float().pow(2).mean().backward()
            stepping.step()
            stepping.zero_grad()
        return Trained(model, stepping)

    return make


def lower(value: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The same containers with every floating tensor cast, step counters aside."""
    if isinstance(value, dict):
        return {key: lower(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [lower(item, dtype) for item in value]
    floating = isinstance(value, torch.Tensor) and value.dim() and value.is_floating_point()
    return value.to(dtype) if floating else value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested containers, by plain inspection."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in tensors_in(item)]


def save_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Writes safetensors by the letter of the format, without its library."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8"}
    names |= {torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3"}
    header, body = {}, b""
    for name, tensor in state.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
