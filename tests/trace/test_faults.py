"""Whatever fails inside the trace is a note in the report: the program runs on, to the same bit and the same output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import harness
import pytest

PROGRAM = """
import torch
from torch import nn

def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).to(torch.bfloat16)
    model.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(6):
        for half in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.randint(0, 3, (4,)))
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, p in zip(average, model.parameters()):
                kept.lerp_(p, 0.1)
            model.seen += 1
        print(step, loss.item())

main()
"""
INSIDE = (
    "user_site", "user_frame", "site_of", "storage_key", "local", "parameters", "state_tensors", "in_graph", "walk",
)  # fmt: skip
"""Functions that taps, trackers and watchers call everywhere."""


@pytest.mark.parametrize("name", INSIDE)
def test_a_part_that_fails_is_noted_and_disturbs_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM, encoding="utf-8")
    plain = harness.run(path)
    harness.run(path, traced=True)  # everything is imported

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("made to fail")

    places = [
        module for key, module in sys.modules.items() if key.startswith("precaudit.runtime") and name in vars(module)
    ]
    assert places
    for module in places:
        monkeypatch.setattr(module, name, fails)
    traced = harness.run(path, traced=True)
    assert (traced.error, traced.stdout, traced.digest) == (plain.error, plain.stdout, plain.digest)
    assert traced.report is not None
    assert any("made to fail" in note for note in traced.report.coverage.notes)
