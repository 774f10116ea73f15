"""A rank's file stays small whatever the model: names are folded, and Facts are counted, never listed."""

from __future__ import annotations

import json
from pathlib import Path

from harness import unchanged_world

SOURCE = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.other_norm = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width) for _ in range(4))
    def forward(self, x):
        x = self.norm(x)
        square = x.pow(2).mean(-1, keepdim=True)          # a norm by hand, in every layer
        x = x * torch.rsqrt(square + 1e-6)
        x = x + self.output(torch.softmax(self.query(x) @ self.key(x).mT, -1) @ self.value(x))
        return self.other_norm(x)

def main(dtype):
    model = torch.nn.Sequential(*(Block(8) for _ in range(84)), torch.nn.Linear(8, 2)).to(dtype)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(2):
        for micro in range(2):
            model(torch.randn(2, 4, 8, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(average, model.parameters()):
            mine.mul_(0.9).add_(theirs.detach(), alpha=0.1)
    return model
"""


def test_the_file_of_a_model_with_a_thousand_tensors_is_under_256_kib(tmp_path: Path) -> None:
    import torch

    from precaudit.runtime import session

    script = tmp_path / "train.py"
    script.write_text(SOURCE)
    names: dict[str, object] = {}
    exec(compile(SOURCE, str(script), "exec"), names)
    with unchanged_world():
        torch.set_num_threads(1)
        running = session.start({"steps": 1, "keep_going": True, "ranks_folder": str(tmp_path), "cwd": str(tmp_path)})
        try:
            model = names["main"](torch.bfloat16)  # type: ignore[operator]
        finally:
            running.remove()
    assert len(list(model.parameters())) >= 1000
    (path,) = tmp_path.glob("rank-*.json")
    written = json.loads(path.read_text())
    assert written["status"] == "finished"
    assert {f["role"] for f in written["facts"]} >= {"master_weight", "optimizer_state", "gradient_accumulation"}
    assert path.stat().st_size < 256 * 1024
    assert max(len(json.dumps(fact)) for fact in written["facts"]) < 2048
